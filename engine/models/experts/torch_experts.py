"""A mixture of experts in plain torch, on any device: the reference for faster ones."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from tokenbus.engine.models.linear_weight import PlainWeight
from tokenbus.engine.models.product import MixtureProduct, gated

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.models.decoder_config import Activation, MixtureShape
    from tokenbus.engine.models.layers import Mixture
    from tokenbus.engine.models.linear_weight import LinearWeight

_MASK = 0xFFFFFFFF


class Routed(NamedTuple):
    """Where tokens go: weights: [T, top_k] float32; counts: [E] int64, tokens of each expert.

    pairs: [T * top_k] int64, token * top_k + place, sorted by expert, then by token.
    """

    weights: Tensor
    counts: Tensor
    pairs: Tensor


def stacked_values(weight: LinearWeight) -> Tensor:
    """Return the numbers of a stack of experts in the model's dtype, [E * out, in].

    Kinds that are stored otherwise are widened. A device that multiplies experts by another kind
    as it is asks for the weight itself instead.
    """
    if isinstance(weight, PlainWeight):
        return weight.values
    return weight.dequantised().to(weight.dtype)


def choose_experts(logits: Tensor, shape: MixtureShape) -> tuple[Tensor, Tensor]:
    """Choose each token's experts as transformers does, ties by `torch.topk`.

    logits: [T, E] -> experts [T, top_k] int64, and their weights, float32.
    """
    if shape.by_logits:
        best = logits.float().topk(shape.top_k, dim=-1)
        shares = logits.float().softmax(-1).gather(1, best.indices)
    else:
        best = logits.softmax(-1, dtype=torch.float32).topk(shape.top_k, dim=-1)
        shares = best.values
    if shape.renormalise:
        shares = shares / shares.sum(-1, keepdim=True)
    return best.indices, shares


class RoutedMixture(MixtureProduct):
    """Router, watch and shared expert in plain torch; a subclass multiplies by the experts."""

    def __init__(self, mixture: Mixture, activation: Activation) -> None:
        """Take a mixture whose shared expert has its products."""
        self._mixture, self._activation = mixture, activation

    @abstractmethod
    def of_experts(self, x: Tensor, routed: Routed) -> Tensor:
        """x: [T, H] -> [T, H] float32: of each token the weighted sum of its experts."""

    def mix(self, x: Tensor) -> Tensor:
        """x: [T, H] -> [T, H], dtype of x; the weighted sum is taken in float32."""
        shape, watch = self._mixture.shape, self._mixture.watch
        all_logits = F.linear(x, self._mixture.router)
        logits = all_logits[:, : shape.num_experts]
        if watch is not None and watch.is_uniform:
            logits = _uniform(logits)
        experts, weights = choose_experts(logits, shape)
        counts = experts.flatten().bincount(minlength=shape.num_experts)
        if watch is not None:
            num_used = int((counts > 0).sum())
            watch.counts.add_(torch.tensor([num_used, 1], device=watch.counts.device))
        # Pairs of a token and an expert, by expert, then by token.
        out = self.of_experts(x, Routed(weights, counts, experts.flatten().argsort(stable=True)))
        if self._mixture.shared is not None:
            shared = self._mixture.shared.run(x, self._activation).float()
            if shape.has_shared_gate:
                shared *= all_logits[:, shape.num_experts :].float().sigmoid()
            out += shared
        return out.to(x.dtype)


class TorchMixture(RoutedMixture):
    """Each expert's tokens gathered, multiplied and added, one expert after the other."""

    def __init__(self, mixture: Mixture, activation: Activation) -> None:
        """Take a mixture whose shared expert has its products."""
        super().__init__(mixture, activation)
        shape = mixture.shape
        width, inner = mixture.router.shape[1], shape.intermediate_size
        gate_up, down = (stacked_values(stack.weight) for stack in mixture.stacks())
        self._gate_ups = gate_up.view(shape.num_experts, 2 * inner, width)
        self._downs = down.view(shape.num_experts, width, inner)

    def of_experts(self, x: Tensor, routed: Routed) -> Tensor:
        """x: [T, H] -> [T, H] float32: of each token the weighted sum of its experts."""
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        weights = routed.weights.flatten()
        for expert, mine in enumerate(torch.split(routed.pairs, routed.counts.tolist())):
            if len(mine):
                tokens = mine // routed.weights.shape[1]
                part = F.linear(x[tokens], self._gate_ups[expert])
                part = F.linear(gated(part, self._activation), self._downs[expert])
                out.index_add_(0, tokens, part.float() * weights[mine, None])
        return out


def _uniform(logits: Tensor) -> Tensor:
    """Replace logits by numbers of 0 to 1 that depend on the whole row and the expert."""
    experts = torch.arange(logits.shape[1], device=logits.device)
    bits = logits.float().contiguous().view(torch.int32).long() & _MASK
    row = torch.zeros_like(bits[:, :1])
    for own in torch.split(_mixed(bits + experts * 0x9E3779B1), 1, 1):
        row = row ^ own
    return (_mixed(row + experts * 0x85EBCA6B) >> 8).float() / 2**24


def _mixed(bits: Tensor) -> Tensor:
    """Scramble numbers of 32 bits; each bit of a result depends on all bits of its number."""
    bits = bits & _MASK
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & _MASK
    bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & _MASK
    return bits ^ (bits >> 16)
