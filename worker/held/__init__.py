"""Held jobs: their state, the orders about them, and what all parts of a worker share."""
