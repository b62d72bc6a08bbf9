"""Held jobs: how they start, which pages they cost, and how they leave."""
