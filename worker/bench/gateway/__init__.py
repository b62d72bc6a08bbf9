"""`tokenbus bench gateway`: streams through the HTTP API, and what the gateway adds to them."""
