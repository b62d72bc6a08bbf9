"""The decoder's steps on a GPU: few, fused launches, all of them capturable."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tokenbus.engine.models.decoder_config import Activation, NormNames
from tokenbus.engine.models.linear_weight import PlainWeight
from tokenbus.engine.models.ops import TorchOps
from tokenbus.engine.models.product import Product, ProductTable
from tokenbus.kernels.embedding import embed
from tokenbus.kernels.linear.gated_linear import gated_linear
from tokenbus.kernels.linear.small_linear import Fusion, small_linear, wide_linear
from tokenbus.kernels.norm import add_rms_norm, rms_norm
from tokenbus.kernels.qkv_rope import qkv_rope

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tokenbus.engine.attention.triton_attention import TritonAttention
    from tokenbus.engine.interfaces import ForwardContext
    from tokenbus.engine.models.layers import DecoderLayer, DecoderTensors, Linear
    from tokenbus.kernels.activation import ActivationKind

_GATES: dict[Activation, ActivationKind] = {
    Activation.SILU: "silu",
    Activation.GELU_TANH: "gelu_tanh",
}
# Rows up to which small_linear chooses between its own kernels and cuBLAS.
MAX_FUSED_ROWS = 16


class FusedProduct(Product):
    """A product that takes the norm before it, and the gate or the sum behind it, into its launch.

    For up to MAX_FUSED_ROWS rows. A kind of weight without it runs step by step.
    """

    @abstractmethod
    def normed(
        self, norm_weight: Tensor | None, eps: float, act: ActivationKind | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Return what takes x [T, in] to the product of rms_norm(x), gated by `act` if given."""

    @abstractmethod
    def added(self, x: Tensor, residual: Tensor) -> Tensor:
        """x: [T, in] -> [T, out], the rounded sum with residual, float32, which is added to."""


class TritonProduct(FusedProduct):
    """A plain weight: small kernels for few rows, cuBLAS for more."""

    def __init__(self, values: Tensor, bias: Tensor | None) -> None:
        self._values, self._bias = values, bias
        self._plain = Fusion(bias=bias)

    def multiply(self, x: Tensor) -> Tensor:
        """x: [T, in] -> [T, out], dtype of x."""
        if x.shape[0] <= MAX_FUSED_ROWS and x.is_contiguous():
            return small_linear(x, self._values, self._plain)
        return F.linear(x, self._values, self._bias)

    def gated(self, x: Tensor, kind: Activation) -> Tensor:
        """x: [T, H] -> activation(gate) * up of its projection to [T, 2 I], [T, I]."""
        if kind not in _GATES:
            return Product.gated(self, x, kind)
        if x.shape[0] == 1:
            return small_linear(x, self._values, Fusion(bias=self._bias, act=_GATES[kind]))
        return gated_linear(x, self._values, self._bias, _GATES[kind])

    def unrounded(self, x: Tensor) -> Tensor:
        """x: [T, in] -> [T, out] float32."""
        return wide_linear(x, self._values, self._bias)

    def normed(
        self, norm_weight: Tensor | None, eps: float, act: ActivationKind | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Return what takes x [T, in] to the product of rms_norm(x), gated by `act` if given."""
        values = self._values
        fusion = Fusion(norm_weight=norm_weight, eps=eps, bias=self._bias, act=act)
        return lambda x: small_linear(x, values, fusion)

    def added(self, x: Tensor, residual: Tensor) -> Tensor:
        """x: [T, in] -> [T, out], the rounded sum with residual, float32, which is added to."""
        return small_linear(x, self._values, Fusion(bias=self._bias, residual=residual))


@dataclass(frozen=True, slots=True)
class _FusedLayer:
    """One layer in six launches: norms, gate and residual sums ride on the linears.

    The sums stay exact in a residual, [T, H] float32, which `o` and `down` add to; what they return
    is the same rounded to the weights' dtype.
    """

    layer: DecoderLayer
    qkv: Callable[[Tensor], Tensor]
    o: Callable[[Tensor, Tensor], Tensor]
    gate_up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor, Tensor], Tensor]


TRITON_PRODUCTS: ProductTable = {
    PlainWeight: lambda weight, bias: TritonProduct(weight.values, bias)
}


class TritonOps(TorchOps):
    """TorchOps with norm, rotation, KV write, activation and attention as Triton kernels."""

    attention: TritonAttention

    def __init__(
        self, attention: TritonAttention, products: ProductTable = TRITON_PRODUCTS
    ) -> None:
        """Attend through `attention`, multiply by the kinds of weight in `products`."""
        super().__init__(attention, products)
        self._fused: list[_FusedLayer] | None = None

    def prepare(self, tensors: DecoderTensors) -> None:
        """Bind every linear to its product, and to its neighbours where layers can be fused."""
        super().prepare(tensors)
        config = tensors.config
        plain = config.norm_names == NormNames() and config.residual_scale == 1.0
        if not plain or config.activation not in _GATES:
            return
        layers = [
            _fused(layer, config.norm_eps, _GATES[config.activation]) for layer in tensors.layers
        ]
        fused = [layer for layer in layers if layer is not None]
        if len(fused) == len(layers):
            self._fused = fused

    def embed(self, token_ids: Tensor, table: Tensor, scale: float) -> Tensor:
        """token_ids: [T] int64, table: [V, H] -> [T, H], times scale."""
        return embed(token_ids, table, scale)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x: [T, H], weight: [H], float32 or x's dtype -> [T, H]."""
        if x.dim() != 2 or not x.is_contiguous():
            return super().rms_norm(x, weight, eps)
        return rms_norm(x, weight, eps)

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return rms_norm(x + residual) in x's dtype and x + residual in float32, both [T, H]."""
        return add_rms_norm(x, residual, weight, eps)

    def logits(
        self, hidden: Tensor, norm: Tensor, eps: float, head: Linear, *, exact: bool
    ) -> Tensor:
        """hidden: [M, H] -> head(rms_norm(hidden)), [M, V] in head's dtype, float32 if `exact`."""
        x = rms_norm(hidden, norm, eps, dtype=head.weight.dtype)
        if not exact or x.dtype == torch.float32:
            return head.product.multiply(x)
        return head.product.unrounded(x)

    def qkv_attention(
        self, qkv: Tensor, layer: DecoderLayer, eps: float, ctx: ForwardContext
    ) -> Tensor:
        """Normalise and rotate q and k, write k and v to their pages, attend."""
        spec = layer.spec
        q_norm, k_norm = layer.q_norm, layer.k_norm
        if q_norm is not None and k_norm is not None and q_norm.shape[0] != spec.head_dim:
            # One norm over all heads of a token does not fit a kernel that takes heads apart.
            qkv = self._norm_qk(
                qkv, q_norm, k_norm, spec.head_dim, spec.num_heads, spec.num_kv_heads, eps
            )
            q_norm = k_norm = None
        q = qkv_rope(
            qkv,
            ctx.kv.k[spec.layer_idx],
            ctx.kv.v[spec.layer_idx],
            ctx.positions,
            ctx.slot_mapping,
            num_heads=spec.num_heads,
            cos=None if layer.rope is None else layer.rope.cos,
            sin=None if layer.rope is None else layer.rope.sin,
            q_norm=q_norm,
            k_norm=k_norm,
            eps=eps,
        )
        return self.attention.read(q, spec, ctx).view(-1, spec.num_heads * spec.head_dim)

    def run_layers(
        self, tensors: DecoderTensors, hidden: Tensor, ctx: ForwardContext
    ) -> Tensor | None:
        """Fuse the layers of few tokens, if their layout is the plain one."""
        if self._fused is None or hidden.shape[0] > MAX_FUSED_ROWS:
            return None
        eps = tensors.config.norm_eps
        residual = hidden.float()
        for fused in self._fused:
            x = self.qkv_attention(fused.qkv(hidden), fused.layer, eps, ctx)
            hidden = fused.o(x, residual)
            hidden = fused.down(fused.gate_up(hidden), residual)
        return residual


def _fused(layer: DecoderLayer, eps: float, act: ActivationKind) -> _FusedLayer | None:
    """Bind a layer's linears to what surrounds them, None if one of them cannot be."""
    products = [linear.product for linear in layer.linears()]
    qkv, o, gate_up, down = (item if isinstance(item, FusedProduct) else None for item in products)
    if qkv is None or o is None or gate_up is None or down is None:
        return None
    return _FusedLayer(
        layer,
        qkv=qkv.normed(layer.pre_attention_norm, eps),
        o=o.added,
        gate_up=gate_up.normed(layer.pre_mlp_norm, eps, act),
        down=down.added,
    )
