"""Patterns of texts: read, combined as regular languages, and written for the grammar library."""
