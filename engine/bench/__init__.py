"""`tokenbus bench engine` and `bench cpu`: the engine alone, measured offline."""
