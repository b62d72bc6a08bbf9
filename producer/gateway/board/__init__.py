"""The board: what the page at `/ui` is given, as plain builders, and the page itself."""
