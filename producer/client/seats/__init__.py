"""The seats of a pool: which are taken, since when, and when they fall free."""
