"""Forced runs: the tokens that a grammar leaves no choice about, from one place on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher

# Longer runs are drawn token by token, each from a mask that allows it alone. The library cuts a
# run into tokens at 1.6 us a byte, 26 ms for so many, and meanwhile no other thread runs Python.
MAX_FORCED_BYTES = 16 << 10


def forced_run(matcher: LLMatcher) -> list[int]:
    """Return the tokens that have no alternative from here on, none if they are too many.

    Behind the mask of the same place, which other threads do not wait for, their bytes are known.
    """
    if 0 < len(matcher.compute_ff_bytes()) <= MAX_FORCED_BYTES:
        tokens: list[int] = matcher.compute_ff_tokens()
        return tokens
    return []
