"""`tokenbus size`: how much a model takes, how many jobs fit, how many workers a load needs."""
