"""Decoder models over paged attention."""
