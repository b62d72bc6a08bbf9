"""The decoder's steps on a GPU: few, fused launches, all of them capturable.

It is one file because the forms that a layer is bound to and what runs them are read side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch

from tokenbus.engine.config import KEPT_IN_FP8_SHARE
from tokenbus.engine.models.decoder_config import NormNames
from tokenbus.engine.models.experts.triton_experts import TritonMixture
from tokenbus.engine.models.layers import GatedMLP
from tokenbus.engine.models.linear_weight import PlainWeight, without_storage
from tokenbus.engine.models.ops import TorchOps, tell_widened
from tokenbus.engine.models.triton_products import (
    GATES,
    MAX_FUSED_ROWS,
    MAX_STEPS_ROWS,
    TRITON_PRODUCTS,
    Fp8Product,
    FusedProduct,
    Int4Product,
    TritonProduct,
)
from tokenbus.kernels.embedding import embed, widen
from tokenbus.kernels.exchange import Exchange, exchange
from tokenbus.kernels.experts.combine import NextNorm
from tokenbus.kernels.linear.fp8_qkv import PageTarget
from tokenbus.kernels.norm import add_rms_norm, rms_norm
from tokenbus.kernels.qkv_rope import qkv_rope

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tokenbus.engine.attention.triton_attention import TritonAttention
    from tokenbus.engine.interfaces import ForwardContext
    from tokenbus.engine.models.layers import DecoderLayer, DecoderTensors, Linear
    from tokenbus.engine.models.product import Product, ProductTable
    from tokenbus.engine.models.rope import RopeTable
    from tokenbus.kernels.activation import ActivationKind
    from tokenbus.kernels.exchange import Boxes

_Item = TypeVar("_Item")
# The sides of the boxes: the two sums of a layer take turns.
ATTENTION, MLP = range(2)


@dataclass(frozen=True, slots=True)
class _FusedLayer:
    """One layer in six launches: norms, gate and residual sums ride on the linears.

    The sums stay exact in a residual, [T, H] float32, which `o` and `mlp` add to; what they return
    is the same rounded to the weights' dtype. A mixture of experts takes a few launches more, and
    if it `hands_on`, what it returns of several rows is behind the next layer's norm, for
    `plain_qkv`.
    """

    layer: DecoderLayer
    qkv: Callable[[Tensor], Tensor]
    plain_qkv: Callable[[Tensor], Tensor]
    o: Callable[[Tensor, Tensor], Tensor]
    mlp: Callable[[Tensor, Tensor], Tensor]
    hands_on: bool = False


@dataclass(frozen=True, slots=True)
class _RoundedLayer:
    """One layer whose linears multiply rows of FP8: each norm and gate rounds what it writes.

    mlp: gate_up and down, or a mixture, which rounds rows itself, for its router does not.
    """

    layer: DecoderLayer
    qkv: Fp8Product
    o: Fp8Product
    mlp: tuple[Fp8Product, Fp8Product] | TritonMixture


class TritonOps(TorchOps):
    """TorchOps with norm, rotation, KV write, activation and attention as Triton kernels."""

    attention: TritonAttention

    def __init__(
        self,
        attention: TritonAttention,
        products: ProductTable = TRITON_PRODUCTS,
    ) -> None:
        """Attend through `attention`, multiply by the kinds of weight in `products`."""
        super().__init__(attention, products)
        self._fused: list[_FusedLayer] | None = None
        self._shares = False
        self._rounded: list[_RoundedLayer] | None = None
        self._rounded_above = MAX_FUSED_ROWS

    def prepare(self, tensors: DecoderTensors) -> None:
        """Bind every linear to its product, and to its neighbours where layers can be fused."""
        config, linears = tensors.config, tensors.linears()
        for linear in linears:
            self._bind(linear)
        tell_widened([item for item in linears if _is_widened(item)])
        for linear in linears:
            if isinstance(linear.product, Int4Product) or _is_widened(linear):
                linear.weight = without_storage(linear.weight)
        if _keep_rounded([linear.product for linear in linears[:-1]]):
            self._rounded_above = MAX_STEPS_ROWS
        self._bind_mixtures(tensors)
        plain = config.norm_names == NormNames() and config.residual_scale == 1.0
        if not plain or config.activation not in GATES:
            return
        self._shares = self.ranks.boxes is not None
        if self.ranks.size > 1 and not self._shares:
            # Sums that torch.distributed launches have no place in fused layers.
            return
        act, following = GATES[config.activation], [*tensors.layers[1:], None]
        fused = [
            _fused(layer, after, config.norm_eps, act, self.ranks.boxes)
            for layer, after in zip(tensors.layers, following, strict=True)
        ]
        self._fused = _if_all(fused)
        self._rounded = _if_all([_rounded(layer) for layer in tensors.layers])

    def _bind_mixtures(self, tensors: DecoderTensors) -> None:
        """Bind mixtures to the kernels of their kind of weight; those without any are widened."""
        activation = tensors.config.activation
        widened = []
        for mixture in tensors.mixtures():
            mixture.product = product = TritonMixture(mixture, activation, GATES[activation])
            if product.is_plain:
                stacks = mixture.stacks()
                widened += [item for item in stacks if not isinstance(item.weight, PlainWeight)]
        tell_widened(widened)
        for stack in widened:
            stack.weight = without_storage(stack.weight)

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

    def attend(self, x: Tensor, layer: DecoderLayer, eps: float, ctx: ForwardContext) -> Tensor:
        """Project x, [T, H], to queries, keys and values, and go on as `qkv_attention`.

        Many rows go straight to their pages where their product can take them there.
        """
        spec, product, rope, norm = layer.spec, layer.qkv.product, layer.rope, layer.q_norm
        by_head = norm is None or norm.shape[0] == spec.head_dim
        if rope is None or not by_head or not isinstance(product, TritonProduct):
            return super().attend(x, layer, eps, ctx)
        is_plain = ctx.kv.scales(spec.layer_idx)[0] is None
        if not is_plain or not product.fits_pages(x, spec.head_dim, rope.cos.shape[1]):
            return super().attend(x, layer, eps, ctx)
        q = product.rows_to_pages(x, _target(layer, rope, ctx), norm, layer.k_norm, eps)
        return self.attention.read(q, spec, ctx).view(-1, spec.num_heads * spec.head_dim)

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
        k_scales, v_scales = ctx.kv.scales(spec.layer_idx)
        # Prompts read this pass's keys and values where they are, not widened from FP8 pages.
        fresh = qkv if k_scales is not None and not ctx.is_decode else None
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
            k_scales=k_scales,
            v_scales=v_scales,
            write_back=fresh is not None,
        )
        return self.attention.read(q, spec, ctx, fresh).view(-1, spec.num_heads * spec.head_dim)

    def _row_attention(
        self, x: Tensor, layer: DecoderLayer, eps: float, ctx: ForwardContext
    ) -> Tensor | None:
        """Project a lone row that decodes straight into its pages, and attend; None for others.

        x: [T, H] before the layer's norm. Norms of heads need whole heads of queries; with several
        rows, tiles of whole heads cost more than the launch that they save.
        """
        spec, product, rope = layer.spec, layer.qkv.product, layer.rope
        if x.shape[0] != 1 or not ctx.is_decode or not isinstance(product, Fp8Product):
            return None
        if rope is None or layer.q_norm is not None:
            return None
        if not product.fits_pages(spec.head_dim, rope.cos.shape[1]):
            return None
        q = product.row_to_pages(x, _target(layer, rope, ctx), layer.pre_attention_norm, eps)
        return self.attention.read(q, spec, ctx).view(1, spec.num_heads * spec.head_dim)

    def run_layers(
        self, tensors: DecoderTensors, hidden: Tensor, ctx: ForwardContext
    ) -> Tensor | None:
        """Fuse the layers of few tokens, and round between those of FP8, if they are plain ones."""
        boxes = self.ranks.boxes
        if boxes is not None and not boxes.holds(hidden):
            return None
        if self._rounded is not None and hidden.shape[0] > self._rounded_above:
            return self._run_rounded(self._rounded, tensors, hidden, ctx)
        if self._fused is None or hidden.shape[0] > MAX_FUSED_ROWS:
            return None if boxes is None else self._run_shared(boxes, tensors, hidden, ctx)
        eps = tensors.config.norm_eps
        residual, is_normed = widen(hidden), False
        for layer in ctx.each(tensors.layers):
            fused = self._fused[layer.spec.layer_idx]
            x = None if is_normed else self._row_attention(hidden, fused.layer, eps, ctx)
            if x is None:
                qkv = fused.plain_qkv(hidden) if is_normed else fused.qkv(hidden)
                x = self.qkv_attention(qkv, fused.layer, eps, ctx)
            hidden = fused.mlp(fused.o(x, residual), residual)
            is_normed = fused.hands_on and hidden.shape[0] > 1
        return residual

    def _run_shared(
        self, boxes: Boxes, tensors: DecoderTensors, hidden: Tensor, ctx: ForwardContext
    ) -> Tensor | None:
        """Take rows through layers that ranks share: each sum takes the norm behind it along."""
        if not self._shares:
            return None
        config, residual = tensors.config, hidden
        eps = config.norm_eps
        norms = [layer.pre_attention_norm for layer in tensors.layers]
        x = hidden if norms[0] is None else self.rms_norm(hidden, norms[0], eps)
        for layer, following in zip(ctx.each(tensors.layers), [*norms[1:], None], strict=True):
            x = self.attend(x, layer, eps, ctx)
            part, among = layer.o.product.multiply(x), Exchange(boxes, ATTENTION)
            x, residual = self._summed(part, among, residual, layer.pre_mlp_norm, eps)
            part, among = layer.mlp.run(x, config.activation), Exchange(boxes, MLP)
            x, residual = self._summed(part, among, residual, following, eps)
        return residual

    def _whole(self, part: Tensor, side: int) -> Tensor:
        """Return the sum of all ranks' parts."""
        boxes = self.ranks.boxes
        return part if boxes is None else exchange(part, Exchange(boxes, side))

    def _summed(
        self, part: Tensor, among: Exchange, residual: Tensor, norm: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return the normed sum of all ranks' parts and the residual, and the sum in float32."""
        added = torch.empty_like(part, dtype=torch.float32)
        behind = None if norm is None else (norm, eps)
        return exchange(part, among, residual, added, behind), added

    def _run_rounded(
        self,
        layers: list[_RoundedLayer],
        tensors: DecoderTensors,
        hidden: Tensor,
        ctx: ForwardContext,
    ) -> Tensor:
        eps, act = tensors.config.norm_eps, GATES[tensors.config.activation]
        branch, residual = hidden, None
        for layer in ctx.each(tensors.layers):
            item = layers[layer.spec.layer_idx]
            norm = item.layer.pre_attention_norm
            assert norm is not None
            rows, residual = item.qkv.norm_rounded(branch, residual, norm, eps)
            x = self.qkv_attention(item.qkv.of_rounded(rows), item.layer, eps, ctx)
            branch = self._whole(item.o.of_rounded(item.o.rounded(x)), ATTENTION)
            norm = item.layer.pre_mlp_norm
            assert norm is not None
            if isinstance(item.mlp, TritonMixture):
                branch, residual = item.mlp.behind_norm(branch, residual, norm, eps)
            else:
                gate_up, down = item.mlp
                rows, residual = gate_up.norm_rounded(branch, residual, norm, eps)
                branch = down.of_rounded(gate_up.gated_rounded(rows, act, down))
            branch = self._whole(branch, MLP)
        return branch.float() if residual is None else residual.float() + branch


def _target(layer: DecoderLayer, rope: RopeTable, ctx: ForwardContext) -> PageTarget:
    """Return where the tokens of a pass go in a layer."""
    idx = layer.spec.layer_idx
    return PageTarget(
        layer.spec.num_heads, ctx.positions, ctx.slot_mapping, rope.cos, rope.sin, ctx.kv.k[idx],
        ctx.kv.v[idx], *ctx.kv.scales(idx),
    )  # fmt: skip


def _fused(
    layer: DecoderLayer,
    following: DecoderLayer | None,
    eps: float,
    act: ActivationKind,
    boxes: Boxes | None,
) -> _FusedLayer | None:
    """Bind a layer's linears to what surrounds them, None if one of them cannot be.

    boxes: those of the ranks that share the layer, if there are several.
    """
    qkv, o = layer.qkv.product, layer.o.product
    if not isinstance(qkv, FusedProduct) or not isinstance(o, FusedProduct):
        return None
    normed = qkv.normed(layer.pre_attention_norm, eps)
    if isinstance(layer.mlp, GatedMLP):
        sums = [None if boxes is None else Exchange(boxes, side) for side in (ATTENTION, MLP)]
        mlp = _fused_mlp(layer.mlp, layer.pre_mlp_norm, eps, act, sums[MLP])
        added = partial(o.added, among=sums[ATTENTION])
        return mlp and _FusedLayer(layer, normed, qkv.multiply, added, mlp)
    mixture, norm = layer.mlp.product, _norm_of(layer.pre_mlp_norm, eps)
    # What a mixture hands on is summed already.
    if not isinstance(mixture, TritonMixture) or boxes is not None:
        return None
    behind = None if following is None else _norm_of(following.pre_attention_norm, eps)
    return _FusedLayer(
        layer,
        normed,
        qkv.multiply,
        o.added,
        lambda x, residual: mixture.added(x, residual, norm, behind),
        hands_on=behind is not None,
    )


def _fused_mlp(
    mlp: GatedMLP, norm: Tensor | None, eps: float, act: ActivationKind, among: Exchange | None
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return what adds an MLP to the residual, norm and sum fused in."""
    gate_up, down = mlp.gate_up.product, mlp.down.product
    if not isinstance(gate_up, FusedProduct) or not isinstance(down, FusedProduct):
        return None
    gates = gate_up.normed(norm, eps, act)
    return lambda x, residual: down.added(gates(x), residual, among)


def _norm_of(weight: Tensor | None, eps: float) -> NextNorm | None:
    """Return a layer's norm where a mixture's kernels can take it along."""
    if weight is None or not NextNorm.fits(weight.shape[0]):
        return None
    return NextNorm(weight, eps)


def _rounded(layer: DecoderLayer) -> _RoundedLayer | None:
    """Return a layer's linears in FP8, None if one of them is not there in it."""
    qkv, o = _fp8_product(layer.qkv), _fp8_product(layer.o)
    if qkv is None or o is None:
        return None
    if not isinstance(layer.mlp, GatedMLP):
        mixture = layer.mlp.product
        if not isinstance(mixture, TritonMixture):
            return None
        return _RoundedLayer(layer, qkv, o, mixture)
    gate_up, down = _fp8_product(layer.mlp.gate_up), _fp8_product(layer.mlp.down)
    if gate_up is None or down is None:
        return None
    return _RoundedLayer(layer, qkv, o, (gate_up, down))


def _fp8_product(linear: Linear) -> Fp8Product | None:
    product = linear.product
    if isinstance(product, Int4Product):
        return product.rounded
    return product if isinstance(product, Fp8Product) else None


def _keep_rounded(products: list[Product]) -> bool:
    """Keep weights of four bits in FP8 too where the device multiplies it and has room to spare."""
    steps = [product for product in products if isinstance(product, Int4Product)]
    if not steps or not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        return False
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    room = min(KEPT_IN_FP8_SHARE * total_bytes, free_bytes / 2)
    if sum(product.rounded_bytes for product in steps) > room:
        return False
    if not all(product.may_be_rounded for product in steps):
        return False
    for product in steps:
        product.keep_rounded()
    return True


def _is_widened(linear: Linear) -> bool:
    """Say whether a linear's weight is kept as plain numbers, though it came as another kind."""
    return isinstance(linear.product, TritonProduct) and not isinstance(linear.weight, PlainWeight)


def _if_all(items: list[_Item | None]) -> list[_Item] | None:
    """Return the items, None if one of them is missing."""
    there = [item for item in items if item is not None]
    return there if len(there) == len(items) else None
