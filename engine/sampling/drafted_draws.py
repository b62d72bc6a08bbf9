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

# Stands where a draft has no more tokens, or none that count; nothing that is drawn equals it.
NO_TOKEN = -3


class DraftedRow(NamedTuple):
    """A row, the position of its first draw, and the tokens that are drafted from there on."""

    row: int
    position: int
    draft: Sequence[int]


class _DrawPlaces:
    """The T places of D drafted rows, row after row; all of it comes in one copy.

    turns: how many are drawn at once if in turn, and order: [T], which. rows, positions: [T], what
    each draws. expected: [T], the drafted token there.
    """

    def __init__(
        self, drafted: Sequence[DraftedRow], to_device: Callable[[NDArray[np.int64]], Tensor]
    ) -> None:
        counts = np.array([1 + len(item.draft) for item in drafted])
        total, width = int(counts.sum()), int(counts.max())
        firsts = np.cumsum(counts) - counts
        steps = np.arange(total) - np.repeat(firsts, counts)
        self.turns: list[int] = np.bincount(steps).tolist()
        sent = to_device(
            np.concatenate(
                (
                    np.repeat([item.row for item in drafted], counts),
                    steps + np.repeat([item.position for item in drafted], counts),
                    [token for item in drafted for token in (*item.draft, NO_TOKEN)],
                    np.argsort(steps, kind="stable"),
                    # The last place of a row stands for those that it does not have.
                    (firsts[:, None] + np.minimum(np.arange(width), counts[:, None] - 1)).ravel(),
                ),
                dtype=np.int64,
            )
        )
        self.rows, self.positions, self.expected, self.order = sent[: 4 * total].view(4, total)
        self._index = sent[4 * total :].view(len(drafted), width)

    def newest(self, token_ids: Tensor) -> Tensor:
        """Return the last drawn token of each row that counts, [D], of all [T] in their places."""
        right = (token_ids == self.expected)[self._index]
        num_right = right.cumprod(1).sum(1, keepdim=True)
        return token_ids[self._index.gather(1, num_right).squeeze(1)]


class DrawnRows(NamedTuple):
    """What was drawn at all T places of D rows."""

    sampled: SampledTokens
    places: _DrawPlaces

    def newest(self) -> Tensor:
        """Return the last token of each row that counts, [D] int64."""
        return self.places.newest(self.sampled.inputs())


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
    places = _DrawPlaces(drafted, to_device)
    draws = SamplingPlan(plan.features & ~Feature.LOGPROBS)
    if state.reads_history(plan):
        token_ids = _drawn_in_turn(state, logits, places, draws, bitmask)
    else:
        rows, positions = places.rows, places.positions
        token_ids = state.sample(logits, rows, positions, plan=draws, bitmask=bitmask).token_ids
    sampled = SampledTokens(token_ids, None)
    if plan.has(Feature.LOGPROBS):
        scores = state.score(logits, sampled.inputs(), plan.num_top_logprobs)
        sampled = SampledTokens(token_ids, scores)
    return DrawnRows(sampled, places)


def _drawn_in_turn(
    state: SamplingState,
    logits: Tensor,
    places: _DrawPlaces,
    plan: SamplingPlan,
    bitmask: Tensor | None,
) -> Tensor:
    """Draw the first places of all rows, then the second ones, and so on; return [T] token ids."""
    token_ids = torch.empty_like(places.order)
    # One more: what follows the last place of all is nobody's.
    counts = torch.ones(len(token_ids) + 1, dtype=torch.bool, device=token_ids.device)
    for at in torch.split(places.order, places.turns):
        drawn = state.sample(
            logits[at],
            torch.where(counts[at], places.rows[at], state.padding_row),
            places.positions[at],
            plan=plan,
            bitmask=None if bitmask is None else bitmask[at],
        ).token_ids
        token_ids[at] = drawn
        counts[at + 1] = counts[at] & (drawn == places.expected[at])
    return token_ids
