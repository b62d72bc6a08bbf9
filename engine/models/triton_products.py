"""Products on a GPU: each kind of weight bound to the kernels that multiply by it.

It is one file because the kinds are a closed set, and the table at its end is all of them.
"""

from __future__ import annotations

from abc import abstractmethod
from math import prod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.models.decoder_config import Activation
from tokenbus.engine.models.linear_weight import (
    Fp8BlockWeight,
    Fp8Weight,
    Int4GroupWeight,
    Int4Weight,
    Int8GroupWeight,
    Int8Weight,
    PlainWeight,
)
from tokenbus.engine.models.ops import widened
from tokenbus.engine.models.product import Product, ProductTable
from tokenbus.kernels.exchange import exchange
from tokenbus.kernels.int4.layout import group_in_blocks, pack_int4
from tokenbus.kernels.int4.linear import int4_linear, widened_int4
from tokenbus.kernels.launch import KernelInputError
from tokenbus.kernels.linear.fp8_blocks import gate_blocks, takes_gates
from tokenbus.kernels.linear.fp8_linear import fits_matvec, fp8_linear, fp8_matvec
from tokenbus.kernels.linear.fp8_qkv import fits_qkv_row, fp8_qkv_row
from tokenbus.kernels.linear.fp8_shapes import check_fp8_weight
from tokenbus.kernels.linear.fp8_table import is_tall
from tokenbus.kernels.linear.gated_linear import gated_linear
from tokenbus.kernels.linear.many_rows import takes_many_rows
from tokenbus.kernels.linear.many_rows_qkv import fits_heads, many_rows_qkv
from tokenbus.kernels.linear.small_linear import Fusion, small_linear, wide_linear
from tokenbus.kernels.quantize import (
    GROUP,
    QuantizedRows,
    add_rms_norm_quantized,
    gated_act_quantized,
    quantize_groups,
    quantize_rows,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tokenbus.engine.models.linear_weight import LinearWeight
    from tokenbus.kernels.activation import ActivationKind
    from tokenbus.kernels.exchange import Exchange
    from tokenbus.kernels.linear.fp8_qkv import PageTarget

GATES: dict[Activation, ActivationKind] = {
    Activation.SILU: "silu",
    Activation.GELU_TANH: "gelu_tanh",
}
# Rows up to which small_linear chooses between its own kernels and cuBLAS.
MAX_FUSED_ROWS = 16
# Rows up to which steps of four bits are multiplied by as they are, if FP8 is kept beside them: the
# four products of an 8B layer took 80 us by steps and 82 in FP8 at 32 rows, 108 and 76 at 48.
MAX_STEPS_ROWS = 32


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
    def added(self, x: Tensor, residual: Tensor, among: Exchange | None = None) -> Tensor:
        """x: [T, in] -> [T, out], the rounded sum with residual, float32, which is added to.

        The product is summed among ranks before, if they are given.
        """


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
        if kind not in GATES:
            return Product.gated(self, x, kind)
        if x.shape[0] == 1:
            return small_linear(x, self._values, Fusion(bias=self._bias, act=GATES[kind]))
        return gated_linear(x, self._values, self._bias, GATES[kind])

    def fits_pages(self, x: Tensor, head_dim: int, rotary_dim: int) -> bool:
        """Say whether `rows_to_pages` takes rows x and heads of a size."""
        return fits_heads(head_dim, rotary_dim) and takes_many_rows(x, self._values, head_dim)

    def rows_to_pages(
        self,
        x: Tensor,
        target: PageTarget,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
    ) -> Tensor:
        """x: [T, in] -> queries [T, Hq, D], rotated; keys and values go to pages."""
        return many_rows_qkv(
            x, self._values, target, bias=self._bias, q_norm=q_norm, k_norm=k_norm, eps=eps
        )

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

    def added(self, x: Tensor, residual: Tensor, among: Exchange | None = None) -> Tensor:
        """x: [T, in] -> [T, out], the rounded sum with residual, float32, which is added to."""
        fusion = Fusion(bias=self._bias, residual=residual, among=among)
        return small_linear(x, self._values, fusion)


class Fp8Product(FusedProduct):
    """An FP8 weight: one row is multiplied as it is, more are rounded to FP8.

    Rows have a scale each, those of a weight with a scale per block one per 128 columns.
    """

    def __init__(self, weight: Fp8Weight | Fp8BlockWeight, bias: Tensor | None) -> None:
        """Take a weight whose sizes 16 divides. Raises: ModelUnsupported for others.

        Blocks have 128 inputs.
        """
        self._block_outputs = 0
        if isinstance(weight, Fp8BlockWeight):
            if weight.block_inputs != GROUP:
                raise ModelUnsupported(
                    f"an FP8 weight: blocks of {weight.block_inputs} inputs; here they have {GROUP}"
                )
            self._block_outputs = weight.block_outputs
        _check(weight.values, weight.scales, self._block_outputs)
        self._weight = weight.values, weight.scales
        self._dtype = weight.dtype
        self._bias = bias
        self._plain = Fusion(bias=bias)

    def fits_pages(self, head_dim: int, rotary_dim: int) -> bool:
        """Say whether `row_to_pages` takes heads of a size."""
        return fits_qkv_row(head_dim, rotary_dim, self._block_outputs)

    @property
    def by_groups(self) -> bool:
        """Whether rows are rounded by groups of columns."""
        return self._block_outputs > 0

    def multiply(self, x: Tensor) -> Tensor:
        """x: [T, in] -> [T, out], dtype of x."""
        return self._multiply(x, self._plain)

    def gated(self, x: Tensor, kind: Activation) -> Tensor:
        """x: [T, H] -> activation(gate) * up of its projection to [T, 2 I], [T, I]."""
        if kind not in GATES:
            return Product.gated(self, x, kind)
        return self._multiply(x, Fusion(bias=self._bias, act=GATES[kind]))

    def unrounded(self, x: Tensor) -> Tensor:
        """x: [T, in] -> [T, out] float32."""
        return self._of_rows(self.rounded(x), self._plain, torch.float32)

    def normed(
        self, norm_weight: Tensor | None, eps: float, act: ActivationKind | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Return what takes x [T, in] to the product of rms_norm(x), gated by `act` if given."""
        plain = Fusion(bias=self._bias, act=act)
        normed = Fusion(norm_weight=norm_weight, eps=eps, bias=self._bias, act=act)

        def multiply(x: Tensor) -> Tensor:
            if norm_weight is None or self._takes_row(x, normed):
                return self._multiply(x, normed)
            rows, _ = self.norm_rounded(x, None, norm_weight, eps)
            return self._of_rows(rows, plain, x.dtype)

        return multiply

    def added(self, x: Tensor, residual: Tensor, among: Exchange | None = None) -> Tensor:
        """x: [T, in] -> [T, out], the rounded sum with residual, float32, which is added to."""
        if among is not None:
            return exchange(self.multiply(x), among, residual, residual)
        return self._multiply(x, Fusion(bias=self._bias, residual=residual))

    def row_to_pages(
        self, x: Tensor, target: PageTarget, norm_weight: Tensor | None, eps: float
    ) -> Tensor:
        """x: [1, in] -> queries [1, Hq, D] of rms_norm(x), rotated; keys and values go to pages."""
        return fp8_qkv_row(
            x, *self._weight, target, bias=self._bias, norm_weight=norm_weight, eps=eps,
            block_outputs=self._block_outputs,
        )  # fmt: skip

    def rounded(self, x: Tensor) -> QuantizedRows:
        """x: [T, in] -> the same as `of_rounded` takes it."""
        x = x.contiguous()
        return quantize_groups(x) if self.by_groups else quantize_rows(x)

    def norm_rounded(
        self, x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float
    ) -> tuple[QuantizedRows, Tensor]:
        """Return rms_norm(x + residual) as `of_rounded` takes it, and x + residual, [T, in]."""
        return add_rms_norm_quantized(x, residual, norm_weight, eps, by_groups=self.by_groups)

    def of_rounded(self, rows: QuantizedRows) -> Tensor:
        """rows: [T, in] -> [T, out], dtype of the activations."""
        return self._of_rows(rows, self._plain, self._dtype)

    def gated_rounded(
        self, rows: QuantizedRows, kind: ActivationKind, following: Fp8Product
    ) -> QuantizedRows:
        """rows: [T, H] -> activation(gate) * up of its projection, [T, I], for `following`."""
        values, scales = self._weight
        if following.by_groups and takes_gates(rows, values, self._block_outputs):
            return gate_blocks(
                rows, values, scales, kind, block_outputs=self._block_outputs, bias=self._bias
            )
        fusion = Fusion(bias=self._bias, act=kind)
        width = values.shape[0] // 2
        if not is_tall(rows.values.shape[0], width, fusion.role, blocks=self.by_groups):
            gate_up = self.of_rounded(rows)
            return gated_act_quantized(gate_up, kind, by_groups=following.by_groups)
        return following.rounded(self._of_rows(rows, fusion, self._dtype))

    def _takes_row(self, x: Tensor, fusion: Fusion) -> bool:
        width_out, width_in = self._weight[0].shape
        return x.shape[0] == 1 and fits_matvec(width_out, width_in, fusion, self._block_outputs)

    def _multiply(self, x: Tensor, fusion: Fusion) -> Tensor:
        if self._takes_row(x, fusion):
            return fp8_matvec(x, *self._weight, fusion, block_outputs=self._block_outputs)
        return self._of_rows(self.rounded(x), fusion, x.dtype)

    def _of_rows(self, rows: QuantizedRows, fusion: Fusion, out_dtype: torch.dtype) -> Tensor:
        return fp8_linear(
            rows, *self._weight, fusion, block_outputs=self._block_outputs, out_dtype=out_dtype
        )


class Int4Product(FusedProduct):
    """A weight of four bits, packed once, for rows in the model's dtype.

    rounded: the same in FP8, for more than MAX_STEPS_ROWS of them; None unless it is kept.
    """

    def __init__(self, weight: Int4GroupWeight, bias: Tensor | None) -> None:
        """Pack a weight whose groups 32 divides, or whose rows are one group."""
        self._packed = pack_int4(
            weight.steps, weight.scales, weight.zeros, weight.group_inputs, weight.order
        )
        self._dtype = weight.dtype
        self._bias = bias
        self._plain = Fusion(bias=bias)
        self.rounded: Fp8Product | None = None

    @property
    def may_be_rounded(self) -> bool:
        """Whether FP8 has kernels for the weight, and its model fewer digits than float32."""
        return self._dtype.itemsize == 2 and all(size % 16 == 0 for size in self._packed.shape)

    @property
    def rounded_bytes(self) -> int:
        """Bytes that the weight takes in FP8, its scales left out."""
        return prod(self._packed.shape)

    def keep_rounded(self) -> None:
        """Keep the weight in FP8 too, each output to a scale of its own."""
        values, order = widened_int4(self._packed, self._dtype), self._packed.order
        if order is not None:
            values = values.index_select(1, order.argsort())
        rows = quantize_rows(values)
        self.rounded = Fp8Product(Fp8Weight(rows.values, rows.scales, self._dtype), self._bias)

    def multiply(self, x: Tensor) -> Tensor:
        """x: [T, in] -> [T, out], dtype of x."""
        if self.rounded is not None and x.shape[0] > MAX_STEPS_ROWS:
            return self.rounded.multiply(x)
        return int4_linear(x.contiguous(), self._packed, self._plain)

    def gated(self, x: Tensor, kind: Activation) -> Tensor:
        """x: [T, H] -> activation(gate) * up of its projection to [T, 2 I], [T, I]."""
        if kind not in GATES:
            return Product.gated(self, x, kind)
        if self.rounded is not None and x.shape[0] > MAX_STEPS_ROWS:
            return self.rounded.gated(x, kind)
        return int4_linear(x.contiguous(), self._packed, Fusion(bias=self._bias, act=GATES[kind]))

    def unrounded(self, x: Tensor) -> Tensor:
        """x: [T, in] -> [T, out] float32."""
        return int4_linear(x.contiguous(), self._packed, self._plain, out_dtype=torch.float32)

    def normed(
        self, norm_weight: Tensor | None, eps: float, act: ActivationKind | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Return what takes x [T, in] to the product of rms_norm(x), gated by `act` if given."""
        fusion = Fusion(norm_weight=norm_weight, eps=eps, bias=self._bias, act=act)
        return lambda x: int4_linear(x, self._packed, fusion)

    def added(self, x: Tensor, residual: Tensor, among: Exchange | None = None) -> Tensor:
        """x: [T, in] -> [T, out], the rounded sum with residual, float32, which is added to."""
        if among is not None:
            return exchange(self.multiply(x), among, residual, residual)
        return int4_linear(x, self._packed, Fusion(bias=self._bias, residual=residual))


def _int4(weight: Int4GroupWeight, bias: Tensor | None) -> Product:
    """Bind a weight of four bits; one whose groups no block holds as its numbers."""
    if group_in_blocks(weight.group_inputs, weight.shape[1]) is None:
        return _widened(weight, bias)
    return Int4Product(weight, bias)


def _widened(weight: LinearWeight, bias: Tensor | None) -> Product:
    """Bind the numbers that a weight stands for, in the model's dtype."""
    return TritonProduct(widened(weight), bias)


def _check(values: Tensor, scales: Tensor, block_outputs: int = 0) -> None:
    """Accept an FP8 weight that the kernels can fetch. Raises: ModelUnsupported."""
    try:
        check_fp8_weight(values, scales, block_outputs)
    except KernelInputError as error:
        raise ModelUnsupported(f"an FP8 weight: {error}") from error


TRITON_PRODUCTS: ProductTable = {
    PlainWeight: lambda weight, bias: TritonProduct(weight.values, bias),
    Fp8Weight: Fp8Product,
    Fp8BlockWeight: Fp8Product,
    Int4GroupWeight: _int4,
    **dict.fromkeys((Int4Weight, Int8Weight, Int8GroupWeight), _widened),
}
