"""The decoder's steps on a GPU: few, fused launches, all of them capturable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F

from tokenbus.engine.models.decoder_config import Activation
from tokenbus.engine.models.ops import TorchOps
from tokenbus.kernels.activation import gated_act
from tokenbus.kernels.embedding import embed
from tokenbus.kernels.norm import add_rms_norm
from tokenbus.kernels.qkv_rope import qkv_rope

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.attention.triton_backend import TritonAttention
    from tokenbus.engine.forward import AttentionBackend, ForwardContext
    from tokenbus.engine.models.layers import DecoderLayer, Linear


class TritonOps(TorchOps):
    """TorchOps with norm, rotation, KV write, activation and attention as Triton kernels."""

    attention: TritonAttention

    def __init__(self, attention: AttentionBackend) -> None:
        """Compute through `attention`, which has to be a TritonAttention."""
        super().__init__(attention)

    def embed(self, token_ids: Tensor, table: Tensor, scale: float) -> Tensor:
        """token_ids: [T] int64, table: [V, H] -> [T, H], times scale."""
        return embed(token_ids, table, scale)

    def linear(self, x: Tensor, linear: Linear) -> Tensor:
        """x: [T, in] -> [T, out]."""
        return F.linear(x, linear.weight, linear.bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x: [T, H], weight: [H], float32 or x's dtype -> [T, H]."""
        if x.dim() != 2 or not x.is_contiguous():
            return super().rms_norm(x, weight, eps)
        return add_rms_norm(x, None, weight, eps)[0]

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return (rms_norm(x + residual), x + residual), both [T, H]."""
        return add_rms_norm(x, residual, weight, eps)

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

    def gated_act(self, gate_up: Tensor, kind: Activation) -> Tensor:
        """gate_up: [T, 2 I] -> activation(gate) * up, [T, I]."""
        if kind is Activation.SILU:
            return gated_act(gate_up, "silu")
        if kind is Activation.GELU_TANH:
            return gated_act(gate_up, "gelu_tanh")
        return super().gated_act(gate_up, kind)
