"""The decoder's compute steps, behind one interface per kind of device."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F

from tokenbus.engine.models.experts.torch_experts import TorchMixture
from tokenbus.engine.models.linear_weight import (
    Fp8BlockWeight,
    Fp8Weight,
    Int4GroupWeight,
    Int8GroupWeight,
    Int8Weight,
    PlainWeight,
)
from tokenbus.engine.models.product import MixtureBinder, ProductTable, TorchProduct, entry_of
from tokenbus.engine.parallel.collective import Alone, Collective

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tokenbus.engine.interfaces import ForwardContext, PagedAttention
    from tokenbus.engine.models.layers import DecoderLayer, DecoderTensors, Linear
    from tokenbus.engine.models.linear_weight import LinearWeight

_log = logging.getLogger(__name__)

# Kinds of a checkpoint that torch has no product for: it multiplies by the numbers that they stand
# for, in the model's dtype. In bfloat16 each is rounded once more, by at most 2**-9 of it: float8
# and 4 bits were rounded by up to 2**-4 when the checkpoint was made.
WIDENED_KINDS: tuple[type[Any], ...] = (
    Fp8Weight,
    Fp8BlockWeight,
    Int4GroupWeight,
    Int8GroupWeight,
    Int8Weight,
)


def widened(weight: LinearWeight) -> Tensor:
    """Return the numbers of a weight in the model's dtype, [out, in]."""
    return weight.dequantised().to(weight.dtype)


TORCH_PRODUCTS: ProductTable = {
    PlainWeight: lambda weight, bias: TorchProduct(weight.values, bias),
    **dict.fromkeys(WIDENED_KINDS, lambda weight, bias: TorchProduct(widened(weight), bias)),
}


TORCH_MIXTURES = MixtureBinder(TorchMixture, WIDENED_KINDS)


class Ops(Protocol):
    """The steps of a decoder on one device; sums and norms in float32, results in x's dtype.

    Linears are steps of their own: `prepare` gives each the product of its kind of weight.
    """

    def prepare(self, tensors: DecoderTensors) -> None:
        """Bind every linear to the product of its kind of weight; pack, allocate; once.

        Raises: ModelUnsupported for a kind of weight, a size or a dtype that it does not compute.
        """
        ...

    def embed(self, token_ids: Tensor, table: Tensor, scale: float) -> Tensor:
        """token_ids: [T] int64, table: [V, H] -> [T, H], times scale."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x: [T, H], weight: [H], float32 or x's dtype -> [T, H]."""
        ...

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return rms_norm(x + residual) in x's dtype and x + residual in float32, both [T, H]."""
        ...

    def attend(self, x: Tensor, layer: DecoderLayer, eps: float, ctx: ForwardContext) -> Tensor:
        """Project x, [T, H], to queries, keys and values, and go on as `qkv_attention`."""
        ...

    def qkv_attention(
        self, qkv: Tensor, layer: DecoderLayer, eps: float, ctx: ForwardContext
    ) -> Tensor:
        """Normalise and rotate q and k, write k and v to their pages, attend.

        qkv: [T, (Hq + 2 Hkv) * D] -> [T, Hq * D].
        """
        ...

    def run_layers(
        self, tensors: DecoderTensors, hidden: Tensor, ctx: ForwardContext
    ) -> Tensor | None:
        """Take hidden [T, H] through all layers in few launches, or return None: step by step."""
        ...

    def logits(
        self, hidden: Tensor, norm: Tensor, eps: float, head: Linear, *, exact: bool
    ) -> Tensor:
        """hidden: [M, H] -> head(rms_norm(hidden)), [M, V] in head's dtype or float32.

        `exact` asks for the sums as they are, where the device can give them unrounded.
        """
        ...


class TorchOps:
    """The steps in plain torch, on any device; the reference for faster ones.

    ranks: those that have the model's other heads, where there are several.
    """

    ranks: Collective = Alone()

    def __init__(self, attention: PagedAttention, products: ProductTable = TORCH_PRODUCTS) -> None:
        """Attend through `attention`, multiply by the kinds of weight in `products`."""
        self.attention = attention
        self._products = products
        self.mixture_binder = TORCH_MIXTURES

    def prepare(self, tensors: DecoderTensors) -> None:
        """Bind every linear and every mixture to its product."""
        tell_of_widened(tensors)
        for linear in tensors.linears():
            self._bind(linear)
        self._bind_mixtures(tensors)

    def embed(self, token_ids: Tensor, table: Tensor, scale: float) -> Tensor:
        """token_ids: [T] int64, table: [V, H] -> [T, H], times scale."""
        hidden = table.index_select(0, token_ids)
        return hidden if scale == 1.0 else hidden.mul_(scale)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x: [..., H], weight: [H], float32 or x's dtype -> [..., H]."""
        if weight.dtype == x.dtype:
            return F.rms_norm(x, weight.shape, weight, eps)
        return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return rms_norm(x + residual) in x's dtype and x + residual in float32, both [T, H]."""
        residual = residual.float() + x
        return self.rms_norm(residual, weight, eps).to(x.dtype), residual

    def attend(self, x: Tensor, layer: DecoderLayer, eps: float, ctx: ForwardContext) -> Tensor:
        """Project x, [T, H], to queries, keys and values, and go on as `qkv_attention`."""
        return self.qkv_attention(layer.qkv.product.multiply(x), layer, eps, ctx)

    def qkv_attention(
        self, qkv: Tensor, layer: DecoderLayer, eps: float, ctx: ForwardContext
    ) -> Tensor:
        """Normalise and rotate q and k, write k and v to their pages, attend."""
        spec = layer.spec
        num_q, num_kv = spec.num_heads, spec.num_kv_heads
        if layer.q_norm is not None and layer.k_norm is not None:
            qkv = self._norm_qk(qkv, layer.q_norm, layer.k_norm, spec.head_dim, num_q, num_kv, eps)
        heads = qkv.view(-1, num_q + 2 * num_kv, spec.head_dim)
        qk, v = torch.split(heads, [num_q + num_kv, num_kv], 1)
        if layer.rope is not None:
            qk = rotate(qk, *layer.rope.rows(ctx))
        q, k = torch.split(qk, [num_q, num_kv], 1)
        return self.attention.attend(q, k, v, spec, ctx).reshape(-1, num_q * spec.head_dim)

    def run_layers(
        self, tensors: DecoderTensors, hidden: Tensor, ctx: ForwardContext
    ) -> Tensor | None:
        """Return None: plain torch runs layers step by step."""
        del tensors, hidden, ctx
        return None

    def logits(
        self, hidden: Tensor, norm: Tensor, eps: float, head: Linear, *, exact: bool
    ) -> Tensor:
        """hidden: [M, H] -> head(rms_norm(hidden)), [M, V] in head's dtype."""
        del exact
        return head.product.multiply(self.rms_norm(hidden, norm, eps).to(head.weight.dtype))

    def _bind(self, linear: Linear) -> None:
        bind = entry_of(self._products, linear.weight)
        linear.product = bind(linear.weight, linear.bias)

    def _bind_mixtures(self, tensors: DecoderTensors) -> None:
        """Bind mixtures, and say if that is to plain torch."""
        binder, mixtures = self.mixture_binder, tensors.mixtures()
        stacks = [stack for mixture in mixtures for stack in mixture.stacks()]
        tell_widened([stack for stack in stacks if isinstance(stack.weight, binder.widened)])
        for mixture in mixtures:
            mixture.product = binder.bind(mixture, tensors.config.activation)
        if mixtures and not binder.is_native:
            _log.info("experts.plain: mixtures of experts run in plain torch on this device")

    def _norm_qk(
        self,
        qkv: Tensor,
        q_norm: Tensor,
        k_norm: Tensor,
        dim: int,
        num_q: int,
        num_kv: int,
        eps: float,
    ) -> Tensor:
        q, k, v = torch.split(qkv, [num_q * dim, num_kv * dim, num_kv * dim], -1)
        if q_norm.shape[0] != dim and self.ranks.size > 1:
            return torch.cat((*self._norm_over_ranks(q, k, q_norm, k_norm, eps), v), -1)
        q = self.rms_norm(q.view(q.shape[0], -1, q_norm.shape[0]), q_norm, eps).flatten(-2)
        k = self.rms_norm(k.view(k.shape[0], -1, k_norm.shape[0]), k_norm, eps).flatten(-2)
        return torch.cat((q, k, v), -1)

    def _norm_over_ranks(
        self, q: Tensor, k: Tensor, q_norm: Tensor, k_norm: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Normalise q and k over the heads of all ranks, of which each has as many."""
        squares = torch.stack([x.float().square().mean(-1) for x in (q, k)], -1)
        means = self.ranks.all_reduce(squares) / self.ranks.size
        factors = (means + eps).rsqrt()
        pairs = zip((q, k), (q_norm, k_norm), torch.split(factors, 1, -1), strict=True)
        q, k = ((x.float() * factor * norm.float()).to(x.dtype) for x, norm, factor in pairs)
        return q, k


def tell_of_widened(tensors: DecoderTensors, kinds: tuple[type[Any], ...] = WIDENED_KINDS) -> None:
    """Say, in the log, which linears this device keeps as numbers of its own dtype."""
    tell_widened([item for item in tensors.linears() if isinstance(item.weight, kinds)])


def tell_widened(linears: Sequence[Linear]) -> None:
    """Say, in the log, that these linears are kept as numbers of their weights' dtype."""
    found = sorted({type(item.weight).__name__ for item in linears})
    if found:
        dtype = str(linears[0].weight.dtype).removeprefix("torch.")
        _log.warning(
            "weights.widened: %s weights are kept and multiplied as %s on this device",
            ", ".join(found),
            dtype,
        )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first rot_dim dimensions of each head, in float32.

    x: [T, heads, D]; cos, sin: [T, 1, rot_dim] float32, sin signed as RopeTable.rows gives it.
    Returns: [T, heads, D], dtype of x.
    """
    rot_dim = cos.shape[-1]
    turned = x if rot_dim == x.shape[-1] else x[..., :rot_dim]
    first, second = turned.chunk(2, -1)
    out = torch.addcmul(turned * cos, torch.cat((second, first), -1), sin).to(x.dtype)
    return out if rot_dim == x.shape[-1] else torch.cat((out, x[..., rot_dim:]), -1)
