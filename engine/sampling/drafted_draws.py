"""Draws behind drafted tokens: at each place the token that one by one would be drawn there.

A place counts if all drafted tokens before it were drawn as well. Where rules look at the tokens
said so far, places are drawn in turn: what was drawn is entered before the next one, and a row
whose draft was wrong goes on as the padding row, so that what it draws there is entered nowhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from tokenbus.engine.sampling.plan import Feature, SamplingPlan
from tokenbus.engine.sampling.sampler import SampledTokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tokenbus.engine.sampling.sampler import SamplingState

# Stands where a draft has no more tokens; nothing that is drawn equals it.
_NO_TOKEN = -3


class DraftedRow(NamedTuple):
    """A row, the position of its first draw, and the tokens that are drafted from there on."""

    row: int
    position: int
    draft: Sequence[int]


class DrawnRows(NamedTuple):
    """What was drawn at all T places of D rows, and [D] int64 the last of each that counts."""

    sampled: SampledTokens
    newest: Tensor


class _DrawPlaces:
    """The T places of drafted rows, in the order in which they are drawn.

    turns: how many are drawn at once. order: [T], which place of the logits each is. owners,
    positions, expected: [T], its row among the D, its position, and the drafted token there.
    """

    def __init__(
        self,
        drafted: Sequence[DraftedRow],
        to_device: Callable[[NDArray[np.int64]], Tensor],
        *,
        in_turn: bool,
    ) -> None:
        counts = np.array([1 + len(item.draft) for item in drafted])
        total, width = int(counts.sum()), int(counts.max())
        firsts = np.cumsum(counts) - counts
        owners = np.repeat(np.arange(len(drafted)), counts)
        steps = np.arange(total) - firsts[owners]
        positions = steps + np.array([item.position for item in drafted])[owners]
        expected = np.array([token for item in drafted for token in (*item.draft, _NO_TOKEN)])
        order = np.argsort(steps, kind="stable") if in_turn else np.arange(total)
        self.turns = np.bincount(steps).tolist() if in_turn else [total]
        # The last place of a row stands for those that it does not have.
        index = firsts[:, None] + np.minimum(np.arange(width), counts[:, None] - 1)
        per_place = np.stack((order, owners[order], positions[order], expected[order]))
        sent = to_device(
            np.concatenate(
                ([item.row for item in drafted], expected, per_place.ravel(), index.ravel()),
                dtype=np.int64,
            )
        )
        rows, by_place, in_order, index_sent = torch.split(
            sent, [len(drafted), total, 4 * total, index.size]
        )
        self.rows, self._by_place = rows, by_place
        self.order, self.owners, self.positions, self.expected = in_order.view(4, total)
        self._index = index_sent.view(index.shape)

    def newest(self, token_ids: Tensor) -> Tensor:
        """Return the last drawn token of each row that counts, [D], of all [T] in their places."""
        right = (token_ids == self._by_place)[self._index]
        num_right = right.cumprod(1).sum(1, keepdim=True)
        return token_ids[self._index.gather(1, num_right).squeeze(1)]


def draw_drafted(
    state: SamplingState,
    logits: Tensor,
    drafted: Sequence[DraftedRow],
    plan: SamplingPlan,
    to_device: Callable[[NDArray[np.int64]], Tensor],
    bitmask: Tensor | None = None,
) -> DrawnRows:
    """Draw at every place of drafted rows, and enter into their state what counts.

    Args:
        logits: [T, V], row after row, one place more than each draft has tokens; T is
            `MAX_DRAFTED_ROWS` at most.
        drafted: the D rows, each once; plan: what they need.
        to_device: copies indices to where the logits are.
        bitmask: [T, W] int32 as in `SamplingState.sample`.
    """
    in_turn = state.reads_history(plan)
    places = _DrawPlaces(drafted, to_device, in_turn=in_turn)
    draws = SamplingPlan(plan.features & ~Feature.LOGPROBS)
    rows = places.rows.clone()
    token_ids = torch.empty_like(places.order)
    begin = 0
    for size in places.turns:
        turn = slice(begin, begin + size)
        at, of = places.order[turn], places.owners[turn]
        drawn = state.sample(
            logits[at] if in_turn else logits,
            rows[of],
            places.positions[turn],
            plan=draws,
            bitmask=bitmask[at] if in_turn and bitmask is not None else bitmask,
        ).token_ids
        token_ids[at] = drawn
        rows[of] = torch.where(drawn == places.expected[turn], rows[of], state.padding_row)
        begin += size
    sampled = SampledTokens(token_ids, None)
    if plan.has(Feature.LOGPROBS):
        scores = state.score(logits, sampled.inputs(), plan.num_top_logprobs)
        sampled = SampledTokens(token_ids, scores)
    return DrawnRows(sampled, places.newest(sampled.inputs()))
