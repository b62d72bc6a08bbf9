"""Grammars of calls and reasoning: the marks, names and arguments of every chat format."""
