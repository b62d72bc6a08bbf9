"""Grammars as a source of drafts: what a schema leaves no choice about, and what fits into it.

The engine takes forced tokens by itself once it stands before them. Here they are drafted beyond
the tokens that a text proposes: the value of a key, then what must follow it, then the next value.
Where no text knows how to go on, the next key or the first value that the schema names is tried.
A proposal that the grammar forbids is cut, so that no row is spent on it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

from tokenbus.engine.speculation.drafter import MAX_STRENGTH, Guess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from threading import Lock

    from tokenbus.engine.speculation.drafter import GrammarWalk

    # Behind the newest tokens: a source by its number with what it proposes, or nothing.
    Propose = Callable[[Sequence[int], int], tuple[int, Guess] | None]

# Texts that one draft is put together from.
_MAX_TEXTS = 4
# What speaks for the first of two keys or values; of more it is the less.
_ONE_OF_TWO = 6


class Fitting:
    """A draft inside a grammar, put together in another thread, and given up if that takes long.

    `propose` is asked under a lock that all share, and never after the draft was given up: what
    answers it belongs to the thread of the engine, which waits meanwhile.
    """

    def __init__(
        self,
        walk: GrammarWalk,
        context: Sequence[int],
        propose: Propose,
        limit: int,
        source: int,
        lock: Lock,
    ) -> None:
        """Take what `fitting` takes."""
        self._put_together = partial(fitting, walk, context, self._ask, limit, source)
        self._propose = propose
        self._lock = lock
        self._pieces: list[tuple[int, Guess]] | None = None
        self._is_over = False
        self._is_done = Event()

    def run(self) -> None:
        """Put the draft together."""
        # A panic of the grammar library is no Exception; without a draft nothing is amiss.
        with suppress(BaseException):
            self._pieces = self._put_together()
        self._is_done.set()

    def take(self, most_s: float) -> list[tuple[int, Guess]] | None:
        """Return the pieces of the draft, None if they are not there after so many seconds."""
        self._is_done.wait(max(0.0, most_s))
        with self._lock:
            self._is_over = True
        return self._pieces

    def _ask(self, context: Sequence[int], limit: int) -> tuple[int, Guess] | None:
        with self._lock:
            if self._is_over:
                raise TimeoutError("nobody waits for this draft any more")
            return self._propose(context, limit)


def fitting(
    walk: GrammarWalk, context: Sequence[int], propose: Propose, limit: int, source: int
) -> list[tuple[int, Guess]]:
    """Return the pieces of a draft inside a grammar, in order.

    Args:
        walk: a copy of the sequence's place, which is moved.
        context: the newest tokens of the sequence.
        propose: asks the texts behind a context.
        limit: tokens at most.
        source: the number under which the grammar's own tokens are told.
    """
    pieces: list[tuple[int, Guess]] = []
    drafted: list[int] = []

    def add(number: int, guess: Guess) -> None:
        kept = _allowed(walk, guess.token_ids[: limit - len(drafted)])
        pieces.append((number, guess._replace(token_ids=kept)))
        drafted.extend(kept)

    for _ in range(_MAX_TEXTS):
        before = len(drafted)
        found = propose([*context, *drafted], limit - before)
        if found is not None:
            add(*found)
        if len(drafted) == before and (choices := walk.likely()):
            add(source, Guess(choices[:1], max(0, _ONE_OF_TWO + 2 - len(choices))))
        if len(drafted) < limit:
            add(source, Guess(walk.forced(), MAX_STRENGTH))
        if len(drafted) in (before, limit):
            break
    return [piece for piece in pieces if piece[1].token_ids]


def _allowed(walk: GrammarWalk, token_ids: Sequence[int]) -> list[int]:
    """Walk as far as a grammar lets tokens follow; return these."""
    kept: list[int] = []
    for token_id in token_ids:
        if not walk.accept(token_id):
            break
        kept.append(token_id)
    return kept
