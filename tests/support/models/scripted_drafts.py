"""Drafts of a recorded run, some of them made wrong by chance."""

from __future__ import annotations

from itertools import takewhile
from random import Random
from typing import TYPE_CHECKING

from tokenbus.engine.types import DraftCount

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenbus.engine.speculation.drafter import DraftView


class ScriptedSpeculation:
    """Drafts what sequences are known to say, found by what they have said so far.

    Of texts that begin alike it drafts what they go on to say in common. One in `wrong_in` drafts
    has a wrong token at a random place, and as many sequences get none.
    Every call is held against the contract: a key is asked for until it is dropped, and that tells
    all its tokens.
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
            self.heard[seq.key] = list(seq.token_ids[seq.num_prompt :])
            assert seq.key not in self.dropped
        return {seq.key: self._draft(list(seq.token_ids)) for seq in seqs}

    def report(self, key: int, draft: Sequence[int], num_right: int) -> None:
        """Count what was right."""
        assert key not in self.dropped
        self.num_drafted += len(draft)
        self.num_right += num_right
        self.num_wrong_drafts += num_right < len(draft)

    def pays(self, num_seqs: int) -> bool:
        """Let everyone be asked."""
        return num_seqs > 0

    def measured(self, num_rows: int, seconds: float) -> None:
        """Take no notice of what steps cost, but that they are some."""
        assert num_rows > 0
        assert seconds > 0

    def drop(self, seq: DraftView) -> None:
        """Note the end of a sequence."""
        assert seq.key not in self.dropped
        heard, told = self.heard.get(seq.key, []), list(seq.token_ids[seq.num_prompt :])
        assert told[: len(heard)] == heard
        self.heard[seq.key] = told
        self.dropped.add(seq.key)

    def learn_answer(self, *_: object) -> None:
        """Learn nothing: the texts are given."""

    def drop_answers(self, *_: object) -> None:
        """Forget nothing."""

    def totals(self) -> tuple[tuple[str, DraftCount], ...]:
        """Return what was counted."""
        return (("script", DraftCount(self.num_drafted, self.num_right)),)

    def _draft(self, known: list[int]) -> list[int]:
        if self._chance.randrange(self._wrong_in) == 0:
            return []
        size = self._chance.randint(1, self.most)
        rests = [text[len(known) :] for text in self.texts if text[: len(known)] == known]
        common = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rests, strict=False))
        draft = [token_id for token_id, *_ in common][:size]
        if draft and self._chance.randrange(self._wrong_in) == 0:
            place = self._chance.randrange(len(draft))
            draft[place] = self._chance.randrange(self._vocab_size)
        return draft
