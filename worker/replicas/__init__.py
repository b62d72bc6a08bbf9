"""Replicas: several workers of one host, placed on its GPUs and cores and kept running."""
