"""Rows rounded to FP8: as they are, behind a norm, behind a gate; scales per row or per group."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.activation import KINDS, gate
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    next_power_of_2,
    release_successor,
    require,
    require_contiguous,
    wait_for_inputs,
)

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.activation import ActivationKind

FP8 = torch.float8_e4m3fn
# Columns that share a scale where a row has several, as blocks of checkpoints have them.
GROUP = 128
# The tallest tile of a product of few rows, one for all of them, and of one of many.
_ONE_TILE, _TILE = 256, 128
# The largest number of e4m3.
FP8_MAX = tl.constexpr(448.0)
# Below this a row counts as zero: its scale stays a normal number.
_TINY = tl.constexpr(1e-20)
# Triton's interpreter cuts digits off where a GPU rounds.
_CAST_ROUNDS = tl.constexpr(not triton.knobs.runtime.interpret)


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """Rows in e4m3 with a scale each, or one per 128 columns: value * scale.

    values: [T, K] float8_e4m3fn, contiguous; scales: [T] or [T, ceil(K / 128)] float32.
    room: [R, K], R >= T, or None: the values and behind them rows of no meaning, up to the height
    of a tile. The copy engine takes longer over a row beyond the edge of a tensor than over one in
    it: on an H200 a product of 160 rows took 22 us where the same of 256 took 14.
    """

    values: Tensor
    scales: Tensor
    room: Tensor | None = None

    @classmethod
    def empty(
        cls, num_rows: int, width: int, device: torch.device, num_groups: int | None = None
    ) -> QuantizedRows:
        """Allocate rows that a kernel will write, with a scale each or with `num_groups`."""
        room = torch.empty(_tile_rows(num_rows), width, dtype=FP8, device=device)
        size = (num_rows,) if num_groups is None else (num_rows, num_groups)
        scales = torch.empty(size, dtype=torch.float32, device=device)
        return cls(room[:num_rows], scales, room)


def _tile_rows(num_rows: int) -> int:
    """Return rows that whole tiles of a product hold."""
    if num_rows <= _ONE_TILE:
        return next_power_of_2(max(num_rows, 16))
    return ceil_div(num_rows, _TILE) * _TILE


@triton.jit
def fp8_number(value):
    """Round finite fp32 up to 448 to the nearest number of e4m3, ties to even, still as fp32."""
    bits = value.to(tl.int32, bitcast=True)
    # Three digits behind the first are kept, 20 of fp32 are not.
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
    # Under 2^-6 numbers are multiples of 2^-9: what a sum as large as this keeps of them.
    small = (value + 24576.0) - 24576.0
    return tl.where(tl.abs(value) < 0.015625, small, bits.to(tl.float32, bitcast=True))


@triton.jit
def to_fp8(value):
    """Round finite fp32 up to 448 to e4m3, as `fp8_number` does.

    The number is an exact one of e4m3 before it is converted, so that nothing is left to the
    conversion, which Triton's interpreter does otherwise than a GPU.
    """
    return fp8_number(value).to(tl.float8e4nv)


@triton.jit
def nearest_fp8(value):
    """Round fp32 up to 448 as `to_fp8` does, in one instruction where there is one."""
    if _CAST_ROUNDS:
        return value.to(tl.float8e4nv)
    return to_fp8(value)


@triton.jit
def finite_number(value):
    """Round as `fp8_number` does, NaN to zero: what broke a row is left to its scale.

    What is needed in fp32 as well comes from here, not from e4m3 widened again: on an H200 every
    other pair of bytes that were stored too came back wrong.
    """
    return fp8_number(tl.where(value - value == 0.0, value, 0.0))


@triton.jit
def scale_of(top):
    """Return the scale that takes a row's largest absolute value to the end of e4m3."""
    return tl.maximum(top, _TINY) / FP8_MAX


@triton.jit
def _store_rows(value, values, scales, row, offs, mask, width):
    """Round one row, its largest number to the end of e4m3.

    The scale of a row with NaN or an infinity is NaN, and so is all that it is multiplied by.
    """
    scale = scale_of(tl.max(tl.abs(value)))
    tl.store(values + row * width + offs, finite_number(value / scale).to(tl.float8e4nv),
             mask=mask)  # fmt: skip
    tl.store(scales + row, scale + tl.sum(value - value))


@triton.jit
def _quantize_rows_kernel(x, values, scales, K: tl.constexpr, BLOCK: tl.constexpr,
                          PDL: tl.constexpr):  # fmt: skip
    release_successor(PDL)
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    mask = offs < K
    wait_for_inputs(PDL)
    value = tl.load(x + row * K + offs, mask=mask, other=0.0).to(tl.float32)
    _store_rows(value, values, scales, row, offs, mask, K)


@triton.jit
def _norm_quantized_kernel(
    x, residual, weight, values, scales, added, eps, K: tl.constexpr, BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    release_successor(PDL)
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    mask = offs < K
    w = tl.load(weight + offs, mask=mask, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    value = tl.load(x + row * K + offs, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(residual + row * K + offs, mask=mask, other=0.0).to(tl.float32)
        tl.store(added + row * K + offs, value, mask=mask)
    normed = value * tl.rsqrt(tl.sum(value * value) / K + eps) * w
    _store_rows(normed, values, scales, row, offs, mask, K)


@triton.jit
def _gated_quantized_kernel(gate_up, values, scales, K: tl.constexpr, BLOCK: tl.constexpr,
                            KIND: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    release_successor(PDL)
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    mask = offs < K
    wait_for_inputs(PDL)
    source = gate_up + row * 2 * K + offs
    value = gate(tl.load(source, mask=mask, other=0.0).to(tl.float32), KIND)
    value *= tl.load(source + K, mask=mask, other=0.0).to(tl.float32)
    _store_rows(value, values, scales, row, offs, mask, K)


@triton.jit
def _quantize_groups_kernel(x, values, scales, K: tl.constexpr, GROUPS: tl.constexpr,
                            BLOCK: tl.constexpr, GROUP: tl.constexpr,
                            PDL: tl.constexpr):  # fmt: skip
    """Round BLOCK groups of a row, each to its own scale."""
    release_successor(PDL)
    row = tl.program_id(0).to(tl.int64)
    groups = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    offs = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    mask = offs < K
    wait_for_inputs(PDL)
    value = tl.load(x + row * K + offs, mask=mask, other=0.0).to(tl.float32)
    scale = scale_of(tl.max(tl.abs(value), axis=1))
    tl.store(values + row * K + offs, to_fp8(value / scale[:, None]), mask=mask)
    scale += tl.sum(value - value, axis=1)
    tl.store(scales + row * GROUPS + groups, scale, mask=groups < GROUPS)


def _num_warps(block: int) -> int:
    """Return warps for a program that holds a row: 32 elements a thread, 16 of a short one."""
    return min(16, max(1, block // 512))


def quantize_rows(x: Tensor) -> QuantizedRows:
    """x: [T, K], contiguous -> the same in e4m3; a row's largest value becomes 448.

    Twin: reference.quantize_rows.
    """
    require_contiguous(x=x)
    num_rows, width = x.shape
    rows = QuantizedRows.empty(num_rows, width, x.device)
    if num_rows:
        block = next_power_of_2(width)
        _quantize_rows_kernel[(num_rows,)](
            x, rows.values, rows.scales, K=width, BLOCK=block, num_warps=_num_warps(block),
            **dependent_launch(x.device),
        )  # fmt: skip
    return rows


def quantize_groups(x: Tensor) -> QuantizedRows:
    """x: [T, K], contiguous -> the same in e4m3 with a scale per row and GROUP columns.

    Returns: values [T, K]; scales [T, ceil(K / 128)]. Twin: each group by itself as a row.
    """
    require_contiguous(x=x)
    num_rows, width = x.shape
    num_groups = ceil_div(width, GROUP)
    rows = QuantizedRows.empty(num_rows, width, x.device, num_groups)
    if num_rows:
        block = min(8, next_power_of_2(num_groups))
        _quantize_groups_kernel[(num_rows, ceil_div(num_groups, block))](
            x, rows.values, rows.scales, K=width, GROUPS=num_groups, BLOCK=block, GROUP=GROUP,
            num_warps=max(1, block // 2), **dependent_launch(x.device),
        )  # fmt: skip
    return rows


def add_rms_norm_quantized(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[QuantizedRows, Tensor]:
    """Return rms_norm(x + residual) in e4m3 and x + residual; see `norm.add_rms_norm`.

    Args: x, residual: [T, K], contiguous, each of its own dtype; weight: [K].
    Returns: [T, K] rounded once, from fp32, and the fp32 sum; x itself without a residual.
    """
    num_rows, width = x.shape
    require_contiguous(x=x, residual=residual, weight=weight)
    require(residual is None or residual.shape == x.shape, "residual and x differ in shape")
    require(weight.shape == (width,), f"weight has shape {tuple(weight.shape)}, x is {width} wide")
    rows = QuantizedRows.empty(num_rows, width, x.device)
    added = x if residual is None else torch.empty_like(x, dtype=torch.float32)
    if num_rows:
        block = next_power_of_2(width)
        _norm_quantized_kernel[(num_rows,)](
            x, residual, weight, rows.values, rows.scales, added, eps, K=width, BLOCK=block,
            HAS_RESIDUAL=residual is not None, num_warps=_num_warps(block),
            **dependent_launch(x.device),
        )  # fmt: skip
    return rows, added


def gated_act_quantized(gate_up: Tensor, kind: ActivationKind = "silu") -> QuantizedRows:
    """gate_up: [T, 2 I], contiguous, gates first -> act(gate) * up in e4m3, rounded once."""
    num_rows, double = gate_up.shape
    require_contiguous(gate_up=gate_up)
    require(double % 2 == 0, f"gate_up is {double} wide")
    require(kind in KINDS, f"unknown activation {kind!r}, have {KINDS}")
    width = double // 2
    rows = QuantizedRows.empty(num_rows, width, gate_up.device)
    if num_rows:
        block = next_power_of_2(width)
        _gated_quantized_kernel[(num_rows,)](
            gate_up, rows.values, rows.scales, K=width, BLOCK=block, KIND=kind,
            num_warps=_num_warps(block), **dependent_launch(gate_up.device),
        )  # fmt: skip
    return rows
