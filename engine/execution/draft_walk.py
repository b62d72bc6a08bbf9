"""Walks through a grammar ahead of its sequence: what a draft may hold, and the masks along it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tokenbus.engine.errors import GrammarRejected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tokenbus.engine.grammar.grammar import GrammarMatcher


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


def masks_along(
    matcher: GrammarMatcher, mask: Tensor, draft: Sequence[int], forces_from: int | None
) -> list[Tensor]:
    """Return the masks of the draws behind a draft's tokens, as many as may count.

    None follows a token that is not allowed, nor one that ends the output, nor where the grammar
    gives no mask. Where a drawn token leaves no choice about the next ones, each of these is alone
    in its mask.

    Args:
        matcher: a copy that stands before the draft, for this alone.
        mask: that of the first draw, [W] int32.
        forces_from: behind how many tokens of the draft tokens may be forced; None: never.
    """
    masks, forced = [mask], list[int]()
    try:
        for number, token_id in enumerate(draft, 1):
            if not _allows(masks[-1], token_id):
                break
            matcher.accept(token_id)
            if forced:
                forced = forced[1:]
            elif forces_from is not None and number >= forces_from:
                forced = matcher.forced_tokens()
            if forced:
                masks.append(_only(forced[0], mask))
            elif matcher.is_finished:
                break
            else:
                masks.append(matcher.mask())
    except BaseException:
        # The sequence comes to this place by itself, and finds out what is wrong there.
        return masks
    return masks


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
