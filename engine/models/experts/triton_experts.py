"""A mixture of experts on a GPU: few launches, whatever the router decides, all capturable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F

from tokenbus.engine.models.experts.torch_experts import stacked_values
from tokenbus.engine.models.product import MixtureProduct
from tokenbus.kernels.experts.combine import Beside, combine
from tokenbus.kernels.experts.grouped import experts_down, experts_up
from tokenbus.kernels.experts.lone_row import lone_row_down, lone_row_up
from tokenbus.kernels.experts.routing import choose, route
from tokenbus.kernels.experts.scores import RouterRule
from tokenbus.kernels.experts.table import tile_rows_for
from tokenbus.kernels.linear.small_linear import Fusion, small_linear
from tokenbus.kernels.linear.table import LinearTuning
from tokenbus.kernels.norm import rms_norm

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.models.decoder_config import Activation
    from tokenbus.engine.models.layers import Mixture
    from tokenbus.kernels.activation import ActivationKind

# Rows up to which the router is multiplied by kernels for few rows.
_MAX_FEW_ROWS = 16
# A router has few outputs: each program gets few of them, so that they fill the chip.
_ROUTER_ROW = LinearTuning(1, 1024, 4)
_ROUTER_ROWS = LinearTuning(16, 512, 4, stages=4, slices=4, width=4)


class TritonMixture(MixtureProduct):
    """One row as matrix times vector; more of them sorted by expert, each expert's in tiles.

    Experts are plain numbers: other kinds of weight are widened when they are bound. A kind that
    kernels multiply by as it is gets a class beside this one.
    """

    def __init__(self, mixture: Mixture, activation: Activation, act: ActivationKind) -> None:
        """Take a mixture whose shared expert has its products; `act` is its activation."""
        self._mixture, self._activation, self._act = mixture, activation, act
        self._gate_up, self._down = (stacked_values(stack.weight) for stack in mixture.stacks())
        self._width = mixture.router.shape[1]
        self._inner = mixture.shape.intermediate_size

    @property
    def _rule(self) -> RouterRule:
        shape, watch = self._mixture.shape, self._mixture.watch
        return RouterRule(
            shape.num_experts,
            shape.top_k,
            renormalise=shape.renormalise,
            by_logits=shape.by_logits,
            is_uniform=watch is not None and watch.is_uniform,
        )

    @property
    def _watch(self) -> Tensor | None:
        return None if self._mixture.watch is None else self._mixture.watch.counts

    def mix(self, x: Tensor) -> Tensor:
        """x: [T, H] -> [T, H], dtype of x: the weighted sum of each token's experts."""
        logits = self._logits(x, Fusion())
        beside = self._beside(x, logits, None)
        if x.shape[0] == 1:
            return self._lone_row(x, logits, beside, None, 0.0)
        return self._grouped(x, logits, beside)

    def added(self, x: Tensor, residual: Tensor, norm_weight: Tensor | None, eps: float) -> Tensor:
        """x: [T, H], few -> the mixture of rms_norm(x), added to residual, float32, and rounded."""
        if x.shape[0] == 1 and self._mixture.shared is None:
            logits = self._logits(x, Fusion(norm_weight=norm_weight, eps=eps))
            return self._lone_row(x, logits, Beside(residual=residual), norm_weight, eps)
        normed = x if norm_weight is None else rms_norm(x, norm_weight, eps)
        logits = self._logits(normed, Fusion())
        beside = self._beside(normed, logits, residual)
        if x.shape[0] == 1:
            return self._lone_row(normed, logits, beside, None, eps)
        return self._grouped(normed, logits, beside)

    def _logits(self, x: Tensor, fusion: Fusion) -> Tensor:
        """x: [T, H] -> the router's logits, rounded to x's dtype as transformers rounds them."""
        router = self._mixture.router
        if x.shape[0] > _MAX_FEW_ROWS or not x.is_contiguous():
            return F.linear(x, router)
        tuning = _ROUTER_ROW if x.shape[0] == 1 else _ROUTER_ROWS
        return small_linear(x, router, fusion, tuning=tuning)

    def _beside(self, x: Tensor, logits: Tensor, residual: Tensor | None) -> Beside:
        """Compute the shared expert, if there is one."""
        shape, shared = self._mixture.shape, self._mixture.shared
        if shared is None:
            return Beside(residual=residual)
        gates = logits[:, shape.num_experts :] if shape.has_shared_gate else None
        return Beside(shared.run(x, self._activation), gates, residual)

    def _lone_row(
        self, x: Tensor, logits: Tensor, beside: Beside, norm_weight: Tensor | None, eps: float
    ) -> Tensor:
        chosen = choose(logits, self._rule, watch=self._watch)
        acted = lone_row_up(
            x, chosen, self._gate_up, self._inner, self._act, norm_weight=norm_weight, eps=eps
        )
        return lone_row_down(acted, chosen, self._down, self._width, beside)

    def _grouped(self, x: Tensor, logits: Tensor, beside: Beside) -> Tensor:
        rule = self._rule
        tile_rows = tile_rows_for(x.shape[0] * rule.top_k, rule.num_experts)
        routing = route(logits, rule, tile_rows, watch=self._watch)
        acted = experts_up(x, self._gate_up, self._inner, routing, self._act)
        pairs = experts_down(acted, self._down, self._width, routing)
        return combine(pairs, routing.chosen.weights, beside)
