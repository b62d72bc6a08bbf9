"""The clients: submit, follow and cancel jobs, blocking or async."""
