"""What the CPU's kernels multiply: forms of weights, and the experts of mixtures."""
