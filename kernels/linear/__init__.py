"""Linear layers for few rows: matrix times vector, small batches, gated pairs."""
