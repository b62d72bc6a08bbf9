"""What outlives jobs and belongs to no pool: responses, batches, and files."""
