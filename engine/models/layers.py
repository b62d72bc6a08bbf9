"""The decoder's tensors: fused linears and what belongs to one layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.kv_cache import AttentionSpec
    from tokenbus.engine.models.decoder_config import DecoderConfig
    from tokenbus.engine.models.linear_weight import LinearWeight
    from tokenbus.engine.models.product import Product
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
class DecoderLayer:
    """One layer: x += post(attention(pre(x))), then x += post(mlp(pre(x))).

    qkv: [(Hq + 2 Hkv) * D, H], queries first; gate_up: [2 I, H], gate first; norms: [H] or None,
    any offset already added; q_norm, k_norm: [D] per head or [Hq * D], [Hkv * D] over all heads.
    """

    spec: AttentionSpec
    rope: RopeTable | None
    qkv: Linear
    o: Linear
    gate_up: Linear
    down: Linear
    pre_attention_norm: Tensor | None
    post_attention_norm: Tensor | None
    pre_mlp_norm: Tensor | None
    post_mlp_norm: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None

    def linears(self) -> tuple[Linear, Linear, Linear, Linear]:
        """Return the layer's projections in the order they run."""
        return self.qkv, self.o, self.gate_up, self.down


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
