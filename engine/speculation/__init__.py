"""Speculation: which tokens a sequence is likely to get next, drafted without a model. No torch."""
