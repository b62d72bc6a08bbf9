"""Processes of a worker: started, framed, and ended together."""
