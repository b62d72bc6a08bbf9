"""Stored things that outlive jobs and belong to no pool: responses, batches, and files."""
