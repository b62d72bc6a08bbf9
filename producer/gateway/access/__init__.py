"""Who may ask for what: API keys, callers and their limits."""
