"""`tokenbus bench pool`: load through the real queue, measured at the readers."""
