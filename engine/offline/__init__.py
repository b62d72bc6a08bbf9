"""Offline calls: their requests, their batches of answers, and what they return."""
