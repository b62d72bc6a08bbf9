"""Linears with weights of four bits: packed once, and multiplied from one row to thousands."""
