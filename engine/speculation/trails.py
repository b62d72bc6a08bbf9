"""Trails: places where a sequence repeats a text, found once and followed while it goes along."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.speculation.match_finder import MAX_MATCH, Match, MatchFinder

if TYPE_CHECKING:
    from tokenbus.engine.speculation.drafter import DraftView, Guess


class Trails:
    """The last match of each sequence, with the number of tokens at which it was found."""

    def __init__(self) -> None:
        self._trails: dict[int, tuple[int, Match]] = {}

    def guess(self, finder: MatchFinder, seq: DraftView, limit: int) -> Guess | None:
        """Return what follows a sequence's newest tokens in a text, at most `limit` tokens."""
        token_ids, trail = seq.token_ids, self._trails.pop(seq.key, None)
        match = None
        if trail is not None:
            num_known, before = trail
            match = finder.moved(before, token_ids[num_known:])
        if match is None:
            match = finder.find(token_ids[-MAX_MATCH:])
        if match is None:
            return None
        self._trails[seq.key] = len(token_ids), match
        return finder.guess_at(match, limit)

    def drop(self, seq: DraftView) -> None:
        """Forget a sequence that has ended."""
        self._trails.pop(seq.key, None)
