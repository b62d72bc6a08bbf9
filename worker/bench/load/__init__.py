"""The load of a bench: when jobs arrive, what they ask for, and simulated clients."""
