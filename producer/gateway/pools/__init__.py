"""The pools behind the gateway: which live, which models they serve, and the way to each."""
