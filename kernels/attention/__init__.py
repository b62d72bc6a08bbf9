"""Attention over pages: decode, prompts, and the work lists between them."""
