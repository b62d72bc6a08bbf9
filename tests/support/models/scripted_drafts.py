"""Drafts of a recorded run, some of them made wrong by chance."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenbus.engine.speculation.drafter import DraftView


class ScriptedSpeculation:
    """Drafts what sequences are known to say, found by what they have said so far.

    One in `wrong_in` drafts has a wrong token at a random place, and as many sequences get none.
    Every call is held against the contract: a key is asked for until it is dropped, and hears of
    each of its tokens once.
    """

    def __init__(
        self, texts: Sequence[Sequence[int]], *, most: int, vocab_size: int, wrong_in: int = 3
    ) -> None:
        """Draft up to `most` tokens from `texts`, each prompt and output."""
        self.texts = [list(text) for text in texts]
        self.most = most
        self.num_drafted = 0
        self.num_right = 0
        self.num_wrong_drafts = 0
        self.heard: dict[int, list[int]] = {}
        self.dropped: set[int] = set()
        self._vocab_size = vocab_size
        self._wrong_in = wrong_in
        self._chance = Random(5)

    def plan(self, seqs: Sequence[DraftView]) -> Mapping[int, Sequence[int]]:
        """Return the drafts of a step."""
        for seq in seqs:
            assert self.heard[seq.key] == list(seq.token_ids[seq.num_prompt :])
            assert seq.key not in self.dropped
        return {seq.key: self._draft(list(seq.token_ids)) for seq in seqs}

    def report(self, key: int, draft: Sequence[int], num_right: int) -> None:
        """Count what was right."""
        assert key not in self.dropped
        self.num_drafted += len(draft)
        self.num_right += num_right
        self.num_wrong_drafts += num_right < len(draft)

    def observe(self, key: int, token_ids: Sequence[int]) -> None:
        """Note tokens of a sequence."""
        self.heard.setdefault(key, []).extend(token_ids)

    def drop(self, key: int) -> None:
        """Note the end of a sequence."""
        assert key not in self.dropped
        self.dropped.add(key)

    def _draft(self, known: list[int]) -> list[int]:
        if self._chance.randrange(self._wrong_in) == 0:
            return []
        size = self._chance.randint(1, self.most)
        for text in self.texts:
            if text[: len(known)] == known:
                draft = text[len(known) : len(known) + size]
                if draft and self._chance.randrange(self._wrong_in) == 0:
                    place = self._chance.randrange(len(draft))
                    draft[place] = self._chance.randrange(self._vocab_size)
                return draft
        return []
