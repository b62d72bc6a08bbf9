"""The match finder: where a text has held its newest tokens, or another text's, before.

The hash chains of a compressor: the last token of each run of `RUN` tokens is filed under a hash
of the run, the latest first, and each place knows the one before it. Of pairs the latest place is
filed alone, for where no run is found. Everything has a fixed size, so a text that outgrows it
forgets its oldest tokens.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenbus.engine.speculation.drafter import MAX_STRENGTH, Guess

if TYPE_CHECKING:
    from collections.abc import Sequence

# Tokens that are filed together, and that have to be alike at least.
RUN, MIN_MATCH = 3, 2
# Tokens that are compared.
MAX_MATCH = MAX_STRENGTH
# Places that one search looks at, the latest first.
_MAX_PLACES = 8
# Stands between two texts and in place of forgotten ones: no token, so nothing matches it.
GAP = -1
# Bytes for a token: its id, the place before it, and two slots of each table of latest places.
TOKEN_BYTES = 4 + 8 + 16 + 16
# From so many tokens on numpy files them sooner than a loop does.
_MANY = 64
_NOWHERE = -1
# Odd, so that every bit of an id counts.
_FACTORS = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)


class Match(NamedTuple):
    """The place behind an earlier occurrence of `length` tokens.

    `is_disputed`: another occurrence as long goes on with another token.
    """

    place: int
    length: int
    is_disputed: bool


class MatchFinder:
    """The newest `capacity` tokens of a text, and where runs of them stand.

    Places count from the first token that was ever taken.
    """

    def __init__(self, capacity: int) -> None:
        """Make an empty text; `capacity` is a power of two."""
        self.capacity = capacity
        self.end = 0
        self._ids = array("i", [GAP]) * capacity
        self._earlier = array("q", [_NOWHERE]) * capacity
        self._latest = array("q", [_NOWHERE]) * (2 * capacity)
        self._latest_pair = array("q", [_NOWHERE]) * (2 * capacity)

    @property
    def start(self) -> int:
        """Return the place of the oldest token that is kept."""
        return max(0, self.end - self.capacity)

    def take(self, token_ids: Sequence[int]) -> None:
        """Add tokens to the end of the text."""
        if len(token_ids) >= _MANY:
            newest = token_ids[-self.capacity :]
            # What would be overwritten at once is skipped.
            self.end += len(token_ids) - len(newest)
            self._take_many(newest)
        else:
            self._take_few(token_ids)

    def erase(self, start: int, end: int) -> None:
        """Forget the tokens at places [start, end)."""
        mask = self.capacity - 1
        for place in range(max(start, self.start), end):
            self._ids[place & mask] = GAP

    def find(self, context: Sequence[int]) -> Match | None:
        """Return the best place to go on from behind `context`: the longest match, else the latest.

        Args:
            context: the newest tokens of any text, `MAX_MATCH` are enough.
        Returns: None if its last `MIN_MATCH` tokens stand nowhere.
        """
        if len(context) < MIN_MATCH:
            return None
        newest_first = context[: -MAX_MATCH - 1 : -1]
        match = self._find_run(newest_first) if len(context) >= RUN else None
        return match or self._find_pair(newest_first[1], newest_first[0])

    def _find_run(self, newest_first: Sequence[int]) -> Match | None:
        ids, earlier, mask = self._ids, self._earlier, self.capacity - 1
        last = self.end - 1
        start = max(0, self.end - self.capacity)
        third, second, first = newest_first[:RUN]
        place = self._latest[_slot(first, second, third, 2 * self.capacity)]
        found, longest, is_disputed = _NOWHERE, RUN - 1, False
        for _ in range(_MAX_PLACES):
            if place < start:
                break
            if place < last:
                length = 0
                for token_id in newest_first:
                    at = place - length
                    if at < start or ids[at & mask] != token_id:
                        break
                    length += 1
                if length > longest:
                    found, longest, is_disputed = place + 1, length, False
                elif length == longest and found != _NOWHERE:
                    is_disputed = is_disputed or ids[place + 1 & mask] != ids[found & mask]
            place = earlier[place & mask]
        return None if found == _NOWHERE else Match(found, longest, is_disputed)

    def _find_pair(self, first: int, second: int) -> Match | None:
        ids, mask = self._ids, self.capacity - 1
        place = self._latest_pair[_slot(first, second, 0, 2 * self.capacity)]
        if place <= self.start:
            return None
        if ids[place & mask] != second or ids[place - 1 & mask] != first:
            return None
        return Match(place + 1, MIN_MATCH, is_disputed=False)

    def guess(self, context: Sequence[int], limit: int) -> Guess | None:
        """Return what follows the best match; where another contradicts it, it counts for half."""
        match = self.find(context)
        return None if match is None else self.guess_at(match, limit)

    def moved(self, match: Match, came: Sequence[int]) -> Match | None:
        """Return a match behind further tokens of its text, None if others stand there."""
        place, length, is_disputed = match
        end, mask = place + len(came), self.capacity - 1
        if place < self.start or end > self.end:
            return None
        first = place & mask
        there = self._ids[first : first + len(came)]
        if len(there) < len(came):
            there += self._ids[: len(came) - len(there)]
        if there != came:
            return None
        return Match(end, min(MAX_MATCH, length + len(came)), is_disputed and not came)

    def guess_at(self, match: Match, limit: int) -> Guess | None:
        """Return what follows a match, None if nothing does."""
        token_ids = self.read(match.place, limit)
        if not token_ids:
            return None
        return Guess(token_ids, match.length // 2 if match.is_disputed else match.length)

    def kept(self) -> list[int]:
        """Return the tokens that are kept, the oldest first."""
        mask = self.capacity - 1
        return [self._ids[place & mask] for place in range(self.start, self.end)]

    def read(self, place: int, limit: int) -> list[int]:
        """Return at most `limit` tokens from a place on, up to the end of their text.

        What runs into the end of everything goes on with what was read: it has a period.
        """
        count, first = min(limit, self.end - place), place & self.capacity - 1
        tokens = self._ids[first : first + count].tolist()
        if len(tokens) < count:
            tokens += self._ids[: count - len(tokens)].tolist()
        if GAP in tokens:
            return tokens[: tokens.index(GAP)]
        while tokens and len(tokens) < limit:
            tokens += tokens[: limit - len(tokens)]
        return tokens

    def _take_few(self, token_ids: Sequence[int]) -> None:
        ids, mask, size = self._ids, self.capacity - 1, 2 * self.capacity
        for place, token_id in enumerate(token_ids, self.end):
            ids[place & mask] = token_id
            if place < RUN - 1:
                continue
            first, second = ids[place - 2 & mask], ids[place - 1 & mask]
            slot = _slot(first, second, token_id, size)
            self._earlier[place & mask] = self._latest[slot]
            self._latest[slot] = place
            if token_id != GAP:
                # Filed with what follows it: the newest pair would only find itself.
                self._latest_pair[_slot(first, second, 0, size)] = place - 1
        self.end += len(token_ids)

    def _take_many(self, token_ids: Sequence[int]) -> None:
        """File a run with a sort in place of a loop; it is no longer than the text may be."""
        mask = self.capacity - 1
        before = [self._ids[place & mask] for place in range(max(0, self.end - 2), self.end)]
        run = np.array([*before, *token_ids], np.int64)
        places = np.arange(self.end - len(before), self.end + len(token_ids))
        ids = np.frombuffer(self._ids, np.int32)
        earlier = np.frombuffer(self._earlier, np.int64)
        latest = np.frombuffer(self._latest, np.int64)
        ids[places & mask] = run
        self.end += len(token_ids)
        places = places[2:]
        leads = run[2:] != GAP
        pairs = _slot(run[:-2], run[1:-1], 0, 2 * self.capacity)[leads]
        # Of equal ones the last is assigned.
        np.frombuffer(self._latest_pair, np.int64)[pairs] = places[leads] - 1
        slots = _slot(run[:-2], run[1:-1], run[2:], 2 * self.capacity)
        order = np.argsort(slots, kind="stable")
        slots, places = slots[order], places[order]
        is_first = np.ones(len(slots), bool)
        is_first[1:] = slots[1:] != slots[:-1]
        previous = np.empty_like(places)
        previous[1:] = places[:-1]
        previous[is_first] = latest[slots[is_first]]
        earlier[places & mask] = previous
        is_last = np.roll(is_first, -1)
        latest[slots[is_last]] = places[is_last]


def _slot(first: Any, second: Any, third: Any, size: int) -> Any:
    """Return where a run of three ids is filed, numbers or arrays; `size` is a power of two."""
    one, two, three = _FACTORS
    return ((first * one ^ second * two ^ third * three) >> 12) & (size - 1)
