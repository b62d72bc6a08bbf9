"""The worker: pulls jobs by free pages, runs the engine, publishes tokens."""
