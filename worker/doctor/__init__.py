"""`tokenbus doctor` and `config`: what is wrong around a pool, and which settings hold."""
