"""Webhooks: delivered, signed, and kept inside the addresses that are allowed."""
