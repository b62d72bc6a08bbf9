"""A sequence's own text as a source of drafts: what its newest tokens were followed by before.

Retrieved documents, results of tools and lists of products stand in the prompt and are quoted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.speculation.match_finder import MatchFinder
from tokenbus.engine.speculation.trails import Trails

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.engine.speculation.drafter import DraftView, Guess

# Tokens of one text that are searched, the newest: 0.9 MB.
_MOST_TOKENS = 32_768
# Room for an answer beside what is known when the search begins.
_ROOM_TOKENS = 512


class OwnText:
    """Prompt and answer of each sequence, filed when it is first asked about and as it grows."""

    name = "own_text"

    def __init__(self) -> None:
        self._finders: dict[int, MatchFinder] = {}
        self._trails = Trails()

    def propose(self, seq: DraftView, context: Sequence[int], limit: int) -> Guess | None:
        """Return what followed the longest earlier occurrence of the context's end."""
        return self._finder(seq).guess(context, limit)

    def follow(self, seq: DraftView, limit: int) -> Guess | None:
        """Return what followed the longest earlier occurrence of the newest tokens."""
        return self._trails.guess(self._finder(seq), seq, limit)

    def drop(self, seq: DraftView) -> None:
        """Forget a sequence that has ended."""
        self._finders.pop(seq.key, None)
        self._trails.drop(seq)

    def _finder(self, seq: DraftView) -> MatchFinder:
        """Return the text of a sequence, with all its tokens in it."""
        finder, num_known = self._finders.get(seq.key), len(seq.token_ids)
        if finder is None or num_known > finder.capacity < _MOST_TOKENS:
            finder = self._finders[seq.key] = MatchFinder(_capacity(num_known))
        if finder.end < num_known:
            finder.take(seq.token_ids[finder.end :])
        return finder


def _capacity(num_tokens: int) -> int:
    """Return a power of two with room for a text that grows."""
    return min(_MOST_TOKENS, 1 << (num_tokens + _ROOM_TOKENS - 1).bit_length())
