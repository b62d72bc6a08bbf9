"""GPU and CPU kernels of tokenbus: tensors in, tensors out."""
