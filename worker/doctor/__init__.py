"""`tokenbus doctor`: what can be wrong around a pool, looked for in order, with what to do."""
