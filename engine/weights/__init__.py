"""Weights: found by name, fetched, converted, read and checked."""
