"""Answers of a group as a source of drafts: what this shop has said, in the words it used.

A group is a cache scope: a tenant, or those who share a cache group. No text of one group is looked
at for another. Each group has a bound in bytes, past which its oldest answers go.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenbus.engine.speculation.match_finder import GAP, MAX_MATCH, TOKEN_BYTES, MatchFinder
from tokenbus.engine.speculation.trails import Trails

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.engine.speculation.drafter import DraftView, Guess

# Of the prompt, what stands before an answer: by it the beginning of another is found.
LEAD_TOKENS = 8
# Answers that wait to be filed, the newest, and how many of them are filed at a time: it takes some
# 100 us each, which nobody has to spare while hundreds of sequences end a second.
_MOST_WAITING, _FILED_AT_ONCE = 256, 8
# Groups with texts, those that were added to last.
_MAX_GROUPS = 64
# Of a group that has just begun; it doubles up to its bound.
_FIRST_TOKENS = 4096
# From the first token on to behind the last.
_Place = tuple[int, int]


@dataclass(slots=True)
class _Answers:
    """The texts of one group in one finder; `places` says where those of a name stand."""

    finder: MatchFinder
    places: dict[int, list[_Place]] = field(default_factory=dict)
    order: deque[tuple[int, _Place]] = field(default_factory=deque)

    def add(self, name: int, token_ids: Sequence[int]) -> None:
        """Add a text and let go of the places of those that it has pushed out."""
        start = self.finder.end
        self.finder.take([GAP, *token_ids, GAP])
        place = start, self.finder.end
        self.places.setdefault(name, []).append(place)
        self.order.append((name, place))
        while self.order[0][1][1] <= self.finder.start:
            gone, _ = self.order.popleft()
            left = self.places.get(gone, [])[1:]
            if left:
                self.places[gone] = left
            else:
                self.places.pop(gone, None)

    def erase(self, name: int) -> None:
        """Take the texts of a name out of the finder."""
        for place in self.places.pop(name, ()):
            self.finder.erase(*place)


class PoolText:
    """Answers that ended lately, by group; each is known by a number that its giver chooses."""

    name = "pool_text"

    def __init__(self, group_bytes: int) -> None:
        """Keep at most so many bytes of each group, rounded down to what a power of two fits."""
        self._most_tokens = 1 << max(MAX_MATCH, group_bytes // TOKEN_BYTES).bit_length() - 1
        self._groups: dict[str, _Answers] = {}
        # The number of each, its group and its tokens.
        self._waiting: deque[tuple[int, str, Sequence[int]]] = deque(maxlen=_MOST_WAITING)
        self._trails = Trails()

    def propose(self, seq: DraftView, context: Sequence[int], limit: int) -> Guess | None:
        """Return what followed the longest occurrence of the context's end in the group."""
        answers = self._groups.get(seq.group) if seq.group else None
        return None if answers is None else answers.finder.guess(context, limit)

    def follow(self, seq: DraftView, limit: int) -> Guess | None:
        """Return what followed the longest occurrence of the newest tokens in the group."""
        answers = self._groups.get(seq.group) if seq.group else None
        return None if answers is None else self._trails.guess(answers.finder, seq, limit)

    def drop(self, seq: DraftView) -> None:
        """Keep the answer of a sequence that has ended, for its group; `file` files it."""
        self._trails.drop(seq)
        if seq.group and len(seq.token_ids) > seq.num_prompt:
            lead = max(0, seq.num_prompt - LEAD_TOKENS)
            self._waiting.append((seq.request_id, seq.group, seq.token_ids[lead:]))

    def file(self) -> None:
        """File some of the answers that wait, the oldest first."""
        for _ in range(min(_FILED_AT_ONCE, len(self._waiting))):
            self.add(*self._waiting.popleft())

    def add(self, name: int, group: str, token_ids: Sequence[int]) -> None:
        """Add an answer, with the end of its prompt where that is known."""
        answers = self._groups.pop(group, None)
        if answers is None:
            answers = _Answers(MatchFinder(min(self._most_tokens, _FIRST_TOKENS)))
        # The group that was added to last is the last.
        self._groups[group] = self._with_room(answers, len(token_ids) + 2)
        self._groups[group].add(name, token_ids)
        if len(self._groups) > _MAX_GROUPS:
            del self._groups[next(iter(self._groups))]

    def erase(self, names: Sequence[int]) -> None:
        """Forget answers by their numbers; those that are not there are passed over."""
        if self._waiting:
            left = [answer for answer in self._waiting if answer[0] not in names]
            self._waiting = deque(left, _MOST_WAITING)
        for answers in self._groups.values():
            for name in names:
                answers.erase(name)

    def _with_room(self, answers: _Answers, num_tokens: int) -> _Answers:
        """Return the answers, in a larger finder where they fill theirs and more may be kept."""
        old = answers.finder
        if old.end + num_tokens <= old.capacity or old.capacity >= self._most_tokens:
            return answers
        capacity = min(self._most_tokens, 1 << (old.end + num_tokens).bit_length())
        larger = MatchFinder(capacity)
        # Nothing was pushed out yet, so every place stays as it is.
        larger.take(old.kept())
        return _Answers(larger, answers.places, answers.order)
