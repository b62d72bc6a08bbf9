"""Linear layers: matrix times vector, small batches, and many rows with what follows them."""
