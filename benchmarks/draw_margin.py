"""How far a token was from being drawn: what rounding has to move, and whether a filter lets it in.

A draw has two kinds of borders. Those between tokens lie on the running sum of the weights that the
filters leave; those of the filters say which weights these are. A token that enters or leaves moves
all borders behind it by its whole weight, so a draw far from any border may turn by a filter's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from tokenbus.engine.types import SamplingParams


class Margin(NamedTuple):
    """What has to move: logits of a greedy token, else probabilities, by so much.

    by_filter: the filters have to leave other tokens for it.
    """

    size: float
    by_filter: bool


def margin_of(logits: Tensor, params: SamplingParams, at: float, token_id: int) -> Margin:
    """Return what has to move for `token_id` to be drawn; 0 if it is.

    Args:
        logits: [V], rules applied.
        at: the uniform of the draw, in [0, 1).
    """
    if params.temperature == 0:
        return Margin(float(logits.max() - logits[token_id]), by_filter=False)
    probs = torch.softmax(logits.double() / params.temperature, dim=-1)
    order = probs.argsort(descending=True, stable=True)
    sets = _kept_sets(probs[order], order, params)
    _, kept = next(sets)
    best = Margin(_to_border(probs, kept, at, token_id), by_filter=False)
    for edge, kept in sets:
        if edge < best.size:
            size = max(edge, _to_border(probs, kept, at, token_id))
            if size < best.size:
                best = Margin(size, by_filter=True)
    return best


def _to_border(probs: Tensor, kept: Tensor, at: float, token_id: int) -> float:
    """Return how far a draw from these tokens is from one of them; infinite for any other."""
    ids = kept.sort().values
    running = probs[ids].cumsum(0) / probs[ids].sum()
    place = int((ids < token_id).sum())
    if place == len(ids) or int(ids[place]) != token_id:
        return float("inf")
    low = float(running[place - 1]) if place else 0.0
    return max(0.0, low - at, at - float(running[place]))


def _kept_sets(
    ranked: Tensor, order: Tensor, params: SamplingParams
) -> Iterator[tuple[float, Tensor]]:
    """Yield the tokens that filters keep, then others that they might, with what has to move.

    Args:
        ranked: [V] float64, probabilities in descending order; order: [V], whose they are.
    """
    total, running = 1.0, ranked.cumsum(0)
    most = len(ranked)
    if params.top_k:
        most = min(most, params.top_k)
        total = float(running[most - 1])
    # A token is inside while the mass before it is short of the nucleus.
    nucleus = params.top_p * total if params.top_p < 1 else float("inf")
    least = params.min_p * float(ranked[0])
    before = running - ranked
    num = max(1, int(((before < nucleus) & (ranked >= least))[:most].sum()))
    yield 0.0, order[:num]
    for other in range(num + 1, most + 1):
        # The last of them has to pass both filters.
        edge = max(0.0, float(before[other - 1]) - nucleus, least - float(ranked[other - 1]))
        yield edge, order[:other]
        if edge > float(ranked[0]):
            break
    for other in range(num - 1, 0, -1):
        by_mass = nucleus - float(running[other - 1])
        by_least = float(ranked[other]) - least if params.min_p else float("inf")
        yield min(by_mass, by_least), order[:other]
    if num < len(ranked):
        # The first that is out and the last that is in may change places.
        swapped = torch.cat((order[: num - 1], order[num : num + 1]))
        yield float(ranked[num - 1] - ranked[num]), swapped
