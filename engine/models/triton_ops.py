"""The decoder's steps on a GPU: few, fused launches, all of them capturable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tokenbus.engine.models.decoder_config import Activation, NormNames
from tokenbus.engine.models.ops import TorchOps
from tokenbus.kernels.embedding import embed
from tokenbus.kernels.linear.gated_linear import gated_linear
from tokenbus.kernels.linear.small_linear import Fusion, small_linear, wide_linear
from tokenbus.kernels.norm import add_rms_norm, rms_norm
from tokenbus.kernels.qkv_rope import qkv_rope

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.attention.triton_attention import TritonAttention
    from tokenbus.engine.interfaces import ForwardContext, PagedAttention
    from tokenbus.engine.models.decoder import Decoder
    from tokenbus.engine.models.decoder_config import DecoderConfig
    from tokenbus.engine.models.layers import DecoderLayer, Linear
    from tokenbus.kernels.activation import ActivationKind

_GATES: dict[Activation, ActivationKind] = {
    Activation.SILU: "silu",
    Activation.GELU_TANH: "gelu_tanh",
}
# Rows up to which small_linear chooses between its own kernels and cuBLAS.
MAX_FUSED_ROWS = 16


class TritonOps(TorchOps):
    """TorchOps with norm, rotation, KV write, activation and attention as Triton kernels."""

    attention: TritonAttention

    def __init__(self, attention: PagedAttention) -> None:
        """Compute through `attention`, which has to be a TritonAttention."""
        super().__init__(attention)

    def embed(self, token_ids: Tensor, table: Tensor, scale: float) -> Tensor:
        """token_ids: [T] int64, table: [V, H] -> [T, H], times scale."""
        return embed(token_ids, table, scale)

    def linear(self, x: Tensor, linear: Linear) -> Tensor:
        """x: [T, in] -> [T, out]."""
        if x.shape[0] <= MAX_FUSED_ROWS and x.is_contiguous():
            return small_linear(x, linear.weight, Fusion(bias=linear.bias))
        return F.linear(x, linear.weight, linear.bias)

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
            return self.linear(x, head)
        return wide_linear(x, head.weight, head.bias)

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

    def run_layers(self, model: Decoder, hidden: Tensor, ctx: ForwardContext) -> Tensor | None:
        """Fuse the layers of few tokens, if their layout is the plain one."""
        config = model.config
        plain = config.norm_names == NormNames() and config.residual_scale == 1.0
        if not plain or config.activation not in _GATES or hidden.shape[0] > MAX_FUSED_ROWS:
            return None
        residual = hidden.float()
        for layer in model.layers:
            hidden = self._run_layer(hidden, residual, layer, config, ctx)
        return residual

    def _run_layer(
        self,
        hidden: Tensor,
        residual: Tensor,
        layer: DecoderLayer,
        config: DecoderConfig,
        ctx: ForwardContext,
    ) -> Tensor:
        """Run one layer in six launches: norms, gate and residual sums ride on the linears.

        The sums stay exact in `residual`, [T, H] float32, which is added to; `hidden` and what is
        returned are the same rounded to the weights' dtype.
        """
        eps = config.norm_eps
        norm = Fusion(norm_weight=layer.pre_attention_norm, eps=eps, bias=layer.qkv.bias)
        qkv = small_linear(hidden, layer.qkv.weight, norm)
        x = self.qkv_attention(qkv, layer, eps, ctx)
        hidden = small_linear(x, layer.o.weight, Fusion(bias=layer.o.bias, residual=residual))
        gate = Fusion(
            norm_weight=layer.pre_mlp_norm,
            eps=eps,
            bias=layer.gate_up.bias,
            act=_GATES[config.activation],
        )
        x = small_linear(hidden, layer.gate_up.weight, gate)
        return small_linear(x, layer.down.weight, Fusion(bias=layer.down.bias, residual=residual))

    def gated_linear(self, x: Tensor, gate_up: Linear, kind: Activation) -> Tensor:
        """x: [T, H] -> activation(gate) * up of its projection to [T, 2 I], [T, I]."""
        if kind not in _GATES:
            return super().gated_linear(x, gate_up, kind)
        if x.shape[0] == 1:
            return small_linear(x, gate_up.weight, Fusion(bias=gate_up.bias, act=_GATES[kind]))
        return gated_linear(x, gate_up.weight, gate_up.bias, _GATES[kind])
