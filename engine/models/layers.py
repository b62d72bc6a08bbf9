"""The decoder's tensors: fused linears and what belongs to one layer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    from torch import Tensor

    from tokenbus.engine.kv_cache import AttentionSpec
    from tokenbus.engine.models.decoder_config import Activation, DecoderConfig, MixtureShape
    from tokenbus.engine.models.linear_weight import LinearWeight
    from tokenbus.engine.models.product import MixtureProduct, Product, RoutingWatch
    from tokenbus.engine.models.rope import RopeTable


@dataclass(slots=True)
class Linear:
    """y = x @ weight.T + bias; bias: [out] or None.

    `product` is what an Ops binds to them, unset before; an Ops that packs a weight of its own
    leaves `weight` without storage.
    """

    weight: LinearWeight
    bias: Tensor | None = None
    product: Product = field(init=False)


@dataclass(slots=True)
class GatedMLP:
    """An MLP: down(activation(gate) * up); gate_up: [2 I, H], gate first, down: [H, I]."""

    gate_up: Linear
    down: Linear

    def run(self, x: Tensor, activation: Activation) -> Tensor:
        """x: [T, H] -> [T, H]."""
        return self.down.product.multiply(self.gate_up.product.gated(x, activation))

    def linears(self) -> tuple[Linear, ...]:
        """Return the projections in the order they run."""
        return self.gate_up, self.down

    def stacks(self) -> tuple[Linear, ...]:
        """Return none: there are no experts."""
        return ()

    def weights_per_token(self) -> int:
        """Numbers that one token is multiplied by."""
        return sum(prod(linear.weight.shape) for linear in self.linears())


@dataclass(slots=True)
class Mixture:
    """A mixture of E experts; each of two stacks holds a matrix of all of them, in their order.

    router: [E, H], with the shared expert's gate as one more row if it has one; gate_up:
    [E * 2 I, H], of each expert its gate first; down: [E * H, I]. `product` is what an Ops binds to
    all of them, unset before; the stacks have no products of their own. watch: for benches.
    """

    shape: MixtureShape
    router: Tensor
    gate_up: Linear
    down: Linear
    shared: GatedMLP | None
    watch: RoutingWatch | None = None
    product: MixtureProduct = field(init=False)

    def run(self, x: Tensor, activation: Activation) -> Tensor:  # noqa: ARG002 # bound with it
        """x: [T, H] -> [T, H]."""
        return self.product.mix(x)

    def linears(self) -> tuple[Linear, ...]:
        """Return the projections of the shared expert."""
        return () if self.shared is None else self.shared.linears()

    def stacks(self) -> tuple[Linear, ...]:
        """Return what holds the experts' matrices."""
        return self.gate_up, self.down

    def weights_per_token(self) -> int:
        """Numbers that one token is multiplied by."""
        stacked = sum(prod(stack.weight.shape) for stack in self.stacks())
        shared = sum(prod(linear.weight.shape) for linear in self.linears())
        chosen = stacked * self.shape.top_k // self.shape.num_experts
        return self.router.numel() + shared + chosen


@dataclass(slots=True)
class DecoderLayer:
    """One layer: x += post(attention(pre(x))), then x += post(mlp(pre(x))).

    qkv: [(Hq + 2 Hkv) * D, H], queries first; norms: [H] or None, any offset already added; q_norm,
    k_norm: [D] per head or [Hq * D], [Hkv * D] over all heads.
    """

    spec: AttentionSpec
    rope: RopeTable | None
    qkv: Linear
    o: Linear
    mlp: GatedMLP | Mixture
    pre_attention_norm: Tensor | None
    post_attention_norm: Tensor | None
    pre_mlp_norm: Tensor | None
    post_mlp_norm: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None

    def linears(self) -> tuple[Linear, ...]:
        """Return the layer's projections in the order they run, those of experts left out."""
        return self.qkv, self.o, *self.mlp.linears()

    def kind(self) -> Hashable:
        """Return what decides on the kernels that the layer launches: no number of its weights."""
        linears = tuple(
            (type(item.weight), item.weight.shape, item.weight.dtype, item.bias is not None)
            for item in (*self.linears(), *self.mlp.stacks())
        )
        norms = tuple(
            None if norm is None else (norm.shape, norm.dtype)
            for norm in (
                self.pre_attention_norm,
                self.post_attention_norm,
                self.pre_mlp_norm,
                self.post_mlp_norm,
                self.q_norm,
                self.k_norm,
            )
        )
        spec = replace(self.spec, layer_idx=0)
        return spec, self.rope is not None, type(self.mlp), linears, norms

    def weights_per_token(self) -> int:
        """Numbers that one token is multiplied by."""
        attention = sum(prod(linear.weight.shape) for linear in (self.qkv, self.o))
        return attention + self.mlp.weights_per_token()


@dataclass(slots=True)
class DecoderTensors:
    """Every tensor of a decoder; embedding: [V, H], final_norm: [H], lm_head: [V, H]."""

    config: DecoderConfig
    embedding: Tensor
    layers: list[DecoderLayer]
    final_norm: Tensor
    lm_head: Linear

    def linears(self) -> list[Linear]:
        """Return the projections of all layers in the order they run, then the head."""
        return [*(linear for layer in self.layers for linear in layer.linears()), self.lm_head]

    def abridged(self) -> DecoderTensors:
        """Return the same with few layers: the first two of each kind, and the last of all.

        The first one has nothing to add to, and the last none behind it.
        """
        kept: list[DecoderLayer] = []
        seen: Counter[Hashable] = Counter()
        for layer in self.layers:
            kind = layer.kind()
            seen[kind] += 1
            if seen[kind] <= 2 or layer is self.layers[-1]:
                kept.append(layer)
        return replace(self, layers=kept)

    def mixtures(self) -> list[Mixture]:
        """Return the mixtures of all layers in the order they run."""
        return [layer.mlp for layer in self.layers if isinstance(layer.mlp, Mixture)]
