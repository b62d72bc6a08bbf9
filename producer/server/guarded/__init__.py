"""The embedded server under its guard: its data folder, whose that is, and its process."""
