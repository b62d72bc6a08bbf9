"""The demo: a shop's jobs through the bus, and the same jobs by taxi."""
