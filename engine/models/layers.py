"""The decoder's tensors: fused linears and what belongs to one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.kv_cache import AttentionSpec
    from tokenbus.engine.models.rope import RopeTable


@dataclass(slots=True)
class Linear:
    """y = x @ weight.T + bias; weight: [out, in], bias: [out] or None.

    `packed` is the form that an Ops prepared for itself; whoever sets it may drop `weight`'s
    storage only if no other linear shares it.
    """

    weight: Tensor
    bias: Tensor | None = None
    packed: Any = None


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
