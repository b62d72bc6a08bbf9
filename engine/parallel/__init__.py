"""Tensor parallel: ranks that run one model together, each with a slice of every layer."""
