"""Limits of one grammar: bytes, parser states, and processor time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from llguidance import LLParserLimits

if TYPE_CHECKING:
    from llguidance import LLMatcher

# Address space of a trial beside what its process had before, in bytes. The heaviest schema that
# compiles within the default time took 40 MiB.
TRIAL_MEMORY_BYTES = 1 << 30
# Wall time of a trial per second of its processor time, and what is added, in seconds: a machine
# with many times more to do than cores is not the grammar's fault, and a long trial yields to it.
WALL_PER_CPU, _WALL_EXTRA_S = 16.0, 5.0
# Longer runs are drawn token by token, each from a mask that allows it alone. The library cuts a
# run into tokens at 1.6 us a byte, 26 ms for so many, and meanwhile no other thread runs Python.
MAX_FORCED_BYTES = 16 << 10


@dataclass(frozen=True)
class GrammarLimits:
    """Limits of one grammar; times are of the processor.

    source_bytes: of the source in UTF-8.
    choice_bytes: of the source of a choice, which is cheap: 100,000 labels of 40 characters, with
        quotes and commas.
    states: of the lexer, over all sequences that share the grammar; 1 to 2 kB each.
    items: of the parser, per token.
    compile_s: for compiling and the trial of the first tokens.
    token_ms: for the mask of one token, and for accepting one.
    """

    source_bytes: int = 262_144
    choice_bytes: int = 5_242_880
    states: int = 50_000
    items: int = 20_000
    compile_s: float = 2.0
    token_ms: float = 100.0

    @property
    def wall_s(self) -> float:
        """Wall time after which a trial is given up."""
        return self.compile_s * WALL_PER_CPU + _WALL_EXTRA_S

    @cached_property
    def of_library(self) -> LLParserLimits:
        """The part that the library keeps by itself; the rest are its defaults."""
        return LLParserLimits(
            step_max_items=self.items,
            # Work on the terminals before the first token: 100,000 labels of 40 characters need
            # 4,000,000. It is part of the trial, whose time is bounded.
            initial_lexer_fuel=8_000_000,
            max_lexer_states=self.states,
            verbose_errors=False,
        )


def too_slow(spent_ms: float, limits: GrammarLimits) -> str:
    """Say that one token cost too much."""
    return (
        f"one token of the grammar took {spent_ms:.0f} ms of processor time,"
        f" the limit is {limits.token_ms:g} ms"
    )


def forced_run(matcher: LLMatcher) -> list[int]:
    """Return the tokens that have no alternative from here on, none if they are too many.

    Behind the mask of the same place, which other threads do not wait for, their bytes are known.
    """
    if 0 < len(matcher.compute_ff_bytes()) <= MAX_FORCED_BYTES:
        tokens: list[int] = matcher.compute_ff_tokens()
        return tokens
    return []
