"""Grammars: JSON schemas, patterns and tool calls as masks over tokens."""
