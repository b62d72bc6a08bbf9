"""Access to the gateway: API keys, callers and their limits."""
