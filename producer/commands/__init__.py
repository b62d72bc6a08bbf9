"""The command line: one module per sub-command of the base installation."""
