"""Plain linear layers of many rows for Hopper, written in Gluon."""
