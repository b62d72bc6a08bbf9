"""What a model writes, made safe to print: its characters, none of its control codes."""

from __future__ import annotations

_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")})


def printable(text: str) -> str:
    """Drop control characters other than line feed and tab, so that no terminal obeys them."""
    return text.translate(_CONTROLS)
