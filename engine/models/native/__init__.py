"""Weights as the CPU's kernels multiply them, and the experts of mixtures."""
