"""Walks through a grammar ahead of its sequence: what a draft may hold, and the masks along it."""

from __future__ import annotations

from contextlib import suppress
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import torch

from tokenbus.engine.errors import GrammarRejected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tokenbus.engine.grammar.grammar import GrammarMatcher


# What a step waits for masks at most, in seconds. Ordinary ones take 0.1 to 1 ms, so those of a
# full batch are there; a row goes without those that are not.
MASK_WAIT_S = 0.01
# Where so many tokens may come next at most, it is a key or a value of a list.
_FEW = 64


class DraftWalk:
    """A copy of a sequence's place in its grammar, see `GrammarWalk`.

    Past a limit of the grammar the walk is over: nothing is forced or allowed any more.
    """

    def __init__(self, matcher: GrammarMatcher) -> None:
        """Begin where `matcher`, a copy, stands."""
        self._matcher = matcher
        self._is_over = False

    def forced(self) -> list[int]:
        """Return the tokens that have no alternative from here on; they are not walked yet."""
        if self._is_over:
            return []
        try:
            return self._matcher.forced_tokens()
        except GrammarRejected:
            self._is_over = True
            return []

    def allowed(self, most: int) -> list[int] | None:
        """Return the tokens that may come next, None if they are more than `most`."""
        if self._is_over:
            return []
        try:
            words = self._matcher.mask().numpy()
        except GrammarRejected:
            self._is_over = True
            return []
        if np.count_nonzero(words) > most:
            return None
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        ids: list[int] = bits.nonzero()[0].tolist()
        return ids if len(ids) <= most else None

    def likely(self) -> list[int]:
        """Return those that begin words of the grammar's source, in its order.

        There are none where many tokens may come next: a text is free there.
        """
        places = self._matcher.source.words
        known = [token_id for token_id in self.allowed(_FEW) or () if token_id in places]
        return sorted(known, key=places.__getitem__)

    def accept(self, token_id: int) -> bool:
        """Walk on by one token; False if it is not allowed."""
        if self._is_over or not self._matcher.allows(token_id):
            return False
        try:
            self._matcher.accept(token_id)
        except GrammarRejected:
            self._is_over = True
            return False
        return True


class DraftMasks:
    """The masks of the draws behind a draft's tokens, as many as may count.

    One thread makes them one by one, and a step takes those that are there in time: behind the last
    of them nothing counts. None follows a token that is not allowed, nor one that ends the output,
    nor where the grammar gives no mask or takes long. Where a drawn token leaves no choice about
    the next ones, each of these is alone in its mask.
    """

    def __init__(
        self, matcher: GrammarMatcher, mask: Tensor, draft: Sequence[int], forces_from: int | None
    ) -> None:
        """Begin with the mask of the first draw.

        Args:
            matcher: a copy that stands before the draft, for this alone.
            mask: [W] int32.
            forces_from: behind how many tokens of the draft tokens may be forced; None: never.
        """
        self._matcher = matcher
        self._draft = draft
        self._forces_from = forces_from
        self._masks = [mask]
        self._runs: dict[int, list[int]] = {}
        self._is_made = Event()
        self._is_taken = False

    def make(self) -> None:
        """Make all masks, until they are taken."""
        # The sequence comes to the place of a fault by itself, and finds out what is wrong there;
        # panics of the library are no Exception.
        with suppress(BaseException):
            self._make()
        self._is_made.set()

    def take(self, most_s: float) -> list[Tensor]:
        """Return the masks that there are after so many seconds, and let no more be made."""
        self._is_made.wait(max(0.0, most_s))
        self._is_taken = True
        return list(self._masks)

    def forced_behind(self, number: int) -> list[int]:
        """Return the tokens that are forced behind the draft's first `number`, as far as known."""
        return self._runs.get(number, [])

    def _make(self) -> None:
        matcher, masks, forced = self._matcher, self._masks, list[int]()
        for number, token_id in enumerate(self._draft, 1):
            if self._is_taken or not _allows(masks[-1], token_id):
                return
            matcher.accept(token_id)
            if matcher.is_slow:
                # Nor is it drawn here: the thread of the engine would have to accept it.
                del masks[max(1, number - 1) :]
                return
            if forced:
                forced = forced[1:]
            elif self._forces_from is not None and number >= self._forces_from:
                forced = self._runs[number] = matcher.forced_tokens()
            if forced:
                masks.append(_only(forced[0], masks[0]))
            elif matcher.is_finished:
                return
            else:
                mask = matcher.mask()
                if matcher.is_slow:
                    return
                masks.append(mask)


def _allows(mask: Tensor, token_id: int) -> bool:
    word, bit = divmod(token_id, 32)
    return word < len(mask) and bool(int(mask[word]) >> bit & 1)


def _only(token_id: int, like: Tensor) -> Tensor:
    """Return the mask that allows one token alone, of the width of another."""
    mask = torch.zeros_like(like)
    word, bit = divmod(token_id, 32)
    # The highest bit of a word is its sign.
    mask[word] = 1 << bit if bit < 31 else -(1 << 31)
    return mask
