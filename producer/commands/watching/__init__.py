"""Commands that watch pools: once, in the terminal again and again, and for a browser."""
