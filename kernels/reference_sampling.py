"""The fp64 torch twin of the sampling kernel: sorts whole rows, obvious, slow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def probability_cut(probs: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Return [M] the smallest probability that top-k, then top-p, then min-p keep.

    probs: [M, V] fp64. Ties of the k-th token stay, but do not count to what top-p weighs.
    """
    num_tokens = probs.shape[-1]
    ranked = probs.sort(-1, descending=True).values
    k = torch.where(top_k > 0, top_k, num_tokens).clamp(max=num_tokens).long()
    rank = torch.arange(num_tokens, device=probs.device)
    kept = torch.where(rank < k[:, None], ranked, 0.0)
    kth = ranked.gather(-1, (k - 1)[:, None])[:, 0]
    running = kept.cumsum(-1)
    inside = (running - kept < top_p.double()[:, None] * running[:, -1:]) & (rank < k[:, None])
    num_inside = inside.sum(-1).clamp(min=1)
    nucleus = ranked.gather(-1, (num_inside - 1)[:, None])[:, 0]
    cut = torch.where(top_p < 1, nucleus, 0.0).maximum(torch.where(top_k > 0, kth, 0.0))
    return cut.maximum(min_p.double() * ranked[:, 0])


def sample_rows(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    u: Tensor,
    is_random: Tensor,
) -> Tensor:
    """Twin of `sampling.sample_rows`."""
    probs = (logits.double() / temperature.double()[:, None]).softmax(-1)
    weights = probs * (probs >= probability_cut(probs, top_k, top_p, min_p)[:, None])
    running = weights.cumsum(-1)
    chosen = (running > u.double()[:, None] * running[:, -1:]).int().argmax(-1)
    return torch.where(is_random.bool(), chosen, logits.argmax(-1))
