"""Formats of quantised checkpoints: from their configs and tensors to kinds of weight."""
