"""Execution: from a plan to tokens, as launches or as CUDA graphs."""
