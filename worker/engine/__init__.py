"""The engine's process: what runs in it, and the worker's end of it."""
