"""A mixture of experts on a GPU: few launches, whatever the router decides, all capturable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F

from tokenbus.engine.models.experts.triton_stacks import PlainExperts, bound_experts
from tokenbus.engine.models.product import MixtureProduct
from tokenbus.kernels.experts.combine import Beside, combine
from tokenbus.kernels.experts.rounded_norm import add_rms_norm_both
from tokenbus.kernels.experts.router import MAX_FEW_ROWS, route_few
from tokenbus.kernels.experts.routing import route
from tokenbus.kernels.experts.scores import RouterRule
from tokenbus.kernels.experts.table import tile_rows_for
from tokenbus.kernels.norm import add_rms_norm

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.models.decoder_config import Activation
    from tokenbus.engine.models.layers import Mixture
    from tokenbus.kernels.activation import ActivationKind
    from tokenbus.kernels.experts.combine import NextNorm
    from tokenbus.kernels.quantize import QuantizedRows


class TritonMixture(MixtureProduct):
    """One row as matrix times vector; more of them sorted by expert, each expert's in tiles."""

    def __init__(self, mixture: Mixture, activation: Activation, act: ActivationKind) -> None:
        """Take a mixture whose shared expert has its products; `act` is its activation."""
        self._mixture, self._activation = mixture, activation
        self._experts = bound_experts(mixture, act)

    @property
    def is_plain(self) -> bool:
        """Whether the experts are kept as numbers of the model's dtype."""
        return isinstance(self._experts, PlainExperts)

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
        if x.shape[0] > MAX_FEW_ROWS:
            return self._of_many(x, None)
        return self.added(x.contiguous(), None, None, None)

    def behind_norm(
        self, x: Tensor, residual: Tensor, norm_weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """x, residual: [T, H] -> the mixture of rms_norm(x + residual), and the sum in float32."""
        if self._experts.rounds_rows and x.shape[0] > MAX_FEW_ROWS:
            normed, rounded, residual = add_rms_norm_both(x, residual, norm_weight, eps)
            return self._of_many(normed, rounded), residual
        normed, residual = add_rms_norm(x, residual, norm_weight, eps)
        return self.mix(normed), residual

    def added(
        self, x: Tensor, residual: Tensor | None, norm: NextNorm | None, behind: NextNorm | None
    ) -> Tensor:
        """x: [T, H], T <= 16 -> the mixture of x, normed if asked for, added to residual, float32.

        Returns: [T, H], the sum rounded to the dtype of x; of several rows `behind` the next norm.
        """
        few = route_few(
            x,
            self._mixture.router,
            self._rule,
            norm_weight=None if norm is None else norm.weight,
            eps=0.0 if norm is None else norm.eps,
            watch=self._watch,
            rounds=self._experts.rounds_rows and x.shape[0] > 1,
        )
        beside = self._beside(few.rows, few.logits, residual)
        if x.shape[0] == 1:
            return self._experts.of_lone_row(few, beside)
        pairs = self._experts.of_pairs(few.rows, few, few.rounded)
        return combine(pairs, few.chosen.weights, beside, behind)

    def _of_many(self, x: Tensor, rounded: QuantizedRows | None) -> Tensor:
        rule = self._rule
        logits = F.linear(x, self._mixture.router)
        tile_rows = tile_rows_for(x.shape[0] * rule.top_k, rule.num_experts)
        routing = route(logits, rule, tile_rows, watch=self._watch)
        pairs = self._experts.of_pairs(x, routing, rounded)
        return combine(pairs, routing.chosen.weights, self._beside(x, logits, None))

    def _beside(self, x: Tensor, logits: Tensor, residual: Tensor | None) -> Beside:
        """Compute the shared expert, if there is one."""
        shape, shared = self._mixture.shape, self._mixture.shared
        if shared is None:
            return Beside(residual=residual)
        gates = logits[:, shape.num_experts :] if shape.has_shared_gate else None
        return Beside(shared.run(x, self._activation), gates, residual)
