"""A walk through a grammar ahead of its sequence: what a draft may hold, and the masks along it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tokenbus.engine.errors import GrammarRejected

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.grammar.grammar import GrammarMatcher


class DraftWalk:
    """A copy of a sequence's place in its grammar, see `GrammarWalk`.

    Past a limit of the grammar the walk is over: nothing is forced or allowed any more.
    """

    def __init__(self, matcher: GrammarMatcher, mask: Tensor) -> None:
        """Begin where `matcher`, a copy, stands; `mask` is that of the next token."""
        self._matcher = matcher
        self._mask: Tensor | None = mask
        self._is_over = False

    @property
    def is_finished(self) -> bool:
        """True if nothing but the end of the sequence may follow."""
        return self._is_over or self._matcher.is_finished

    def mask(self) -> Tensor:
        """Return the tokens that may come next, [W] int32.

        Raises: GrammarRejected if the grammar exceeds its limits here.
        """
        if self._mask is None:
            self._mask = self._matcher.mask()
        return self._mask

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
            words = self.mask().numpy()
        except GrammarRejected:
            self._is_over = True
            return []
        if np.count_nonzero(words) > most:
            return None
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        ids: list[int] = bits.nonzero()[0].tolist()
        return ids if len(ids) <= most else None

    def accept(self, token_id: int) -> bool:
        """Walk on by one token; False if it is not allowed."""
        if self._is_over or not self._matcher.allows(token_id):
            return False
        try:
            self._matcher.accept(token_id)
        except GrammarRejected:
            self._is_over = True
            return False
        self._mask = None
        return True


def only(token_id: int, like: Tensor) -> Tensor:
    """Return the mask that allows one token alone, of the width of another."""
    mask = torch.zeros_like(like)
    # The highest bit of a word is the sign.
    bit = 1 << token_id % 32
    mask[token_id // 32] = bit - (1 << 32) if bit >> 31 else bit
    return mask
