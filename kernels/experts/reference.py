"""Twins of the kernels of mixtures: slow and obvious, in float32 torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from tokenbus.kernels import reference

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.experts.scores import RouterRule


class ChosenTwin(NamedTuple):
    """experts: [T, top_k] int64, the likeliest first; weights: [T, top_k] float32."""

    experts: Tensor
    weights: Tensor


def route(logits: Tensor, rule: RouterRule) -> ChosenTwin:
    """Choose by the largest softmax or logit, the lower number where two are equal."""
    shown = logits[:, : rule.num_experts].float()
    share = shown.softmax(-1)
    # A stable sort keeps equal ones in their order; NaN goes to the front.
    score = shown if rule.by_logits else share
    order = torch.sort(score, stable=True, dim=-1, descending=True).indices
    experts = order[:, : rule.top_k]
    weights = share.gather(1, experts)
    if rule.renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return ChosenTwin(experts, weights)


def mix(x: Tensor, chosen: ChosenTwin, gate_up: Tensor, down: Tensor, act: str = "silu") -> Tensor:
    """Sum each row's experts, weighted.

    x: [T, H], gate_up: [E * 2 I, H], gates first in each expert, down: [E * H, I] -> [T, H].
    """
    width, inner = x.shape[1], down.shape[1]
    gate_ups = gate_up.view(-1, 2 * inner, width).float()
    downs = down.view(-1, width, inner).float()
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for row, (experts, weights) in enumerate(zip(*chosen, strict=True)):
        for expert, weight in zip(experts.tolist(), weights, strict=True):
            acted = reference.gated_act((gate_ups[expert] @ x[row].float())[None], act)[0]
            out[row] += weight * (downs[expert] @ acted)
    return out
