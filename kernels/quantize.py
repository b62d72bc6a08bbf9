"""Rows rounded to FP8: as they are, behind a norm, behind a gate; scales per row or per group.

It is one file because whatever is rounded shares one way to round and one to scale.
"""

# Triton unrolls the loops over tuples, mypy cannot.
# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
# mypy: disable-error-code="assignment"
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
# Threads of a program that holds a row; more where each row has a multiprocessor to itself.
_THREADS, _FEW_ROWS_THREADS, _FEW_ROWS = 256, 512, 128
# The largest number of e4m3.
FP8_MAX = tl.constexpr(448.0)
# Below this a row counts as zero: its scale stays a normal number.
_TINY = tl.constexpr(1e-20)
# Two numbers rounded to e4m3 and widened again, which half precision holds on the way.
_THERE_AND_BACK = tl.constexpr(
    """
    {
        .reg .b16 rounded, low, high;
        .reg .b32 halves;
        cvt.rn.satfinite.e4m3x2.f32 rounded, $3, $2;
        cvt.rn.f16x2.e4m3x2 halves, rounded;
        mov.b32 {low, high}, halves;
        cvt.f32.f16 $0, low;
        cvt.f32.f16 $1, high;
    }
    """
)
# Four numbers rounded to e4m3, together in a register: what pages get. Of pairs that were stored
# together and byte by byte, ptxas 12.8 took some bytes from where none of them was.
_FOUR_TO_FP8 = tl.constexpr(
    """
    {
        .reg .b16 first, second;
        cvt.rn.satfinite.e4m3x2.f32 first, $2, $1;
        cvt.rn.satfinite.e4m3x2.f32 second, $4, $3;
        mov.b32 $0, {first, second};
    }
    """
)
# Triton's interpreter cuts digits off where a GPU rounds.
_CAST_ROUNDS = tl.constexpr(not triton.knobs.runtime.interpret)


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """Rows in e4m3 with a scale each, or one per 128 columns: value * scale.

    values: [T, K] float8_e4m3fn, contiguous; scales: [T] or [T, ceil(K / 128)] float32, those of a
    group side by side, as the rows of a tile need them.
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
        height = _tile_rows(num_rows)
        room = torch.empty(height, width, dtype=FP8, device=device)
        values = room if height == num_rows else room[:num_rows]
        if num_groups is None:
            return cls(values, torch.empty(num_rows, dtype=torch.float32, device=device), room)
        shape, strides = (num_rows, num_groups), (1, height)
        scales = torch.empty_strided(shape, strides, dtype=torch.float32, device=device)
        return cls(values, scales, room)

    @property
    def group_stride(self) -> int:
        """Scales from those of a group to those of the next, 0 if rows have one alone."""
        return self.scales.stride(1) if self.scales.dim() > 1 else 0

    @property
    def in_tiles(self) -> Tensor:
        """Return the values with the rows behind them that fill a tile, where there are any."""
        return self.values if self.room is None else self.room


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
    """Round as `fp8_number` does, NaN to zero: what broke a row is left to its scale."""
    return fp8_number(tl.where(value - value == 0.0, value, 0.0))


@triton.jit
def scale_of(top):
    """Return the scale that takes a row's largest absolute value to the end of e4m3."""
    return tl.maximum(top, _TINY) / FP8_MAX


@triton.jit
def row_number(value):
    """Round what is within 448, by a hair beyond it, or NaN, for rows that are multiplied.

    A NaN stays in its row, so it needs no care where the instruction is at hand.
    """
    if _CAST_ROUNDS:
        return value.to(tl.float8e4nv)
    return finite_number(value).to(tl.float8e4nv)


@triton.jit
def page_number(value, inverse):
    """Round value * inverse to e4m3, what is no number to zero: pages hold no NaN."""
    finite = tl.where(value - value == 0.0, value, 0.0)
    if not _CAST_ROUNDS:
        return finite_number(finite * inverse).to(tl.float8e4nv)
    return page_bytes(finite * inverse)


@triton.jit
def page_bytes(value):
    """Round fp32, no NaN among it, to e4m3 for stores of several widths."""
    if not _CAST_ROUNDS:
        return to_fp8(value)
    octets = tl.inline_asm_elementwise(
        _FOUR_TO_FP8, "=r,f,f,f,f", [value], dtype=tl.int8, is_pure=True, pack=4
    )
    return octets.to(tl.float8e4nv, bitcast=True)


@triton.jit
def nearest_number(value, inverse):
    """Return the fp32 number that `page_number` rounds to.

    What is needed in fp32 as well comes from here, not from e4m3 widened again: on an H200 every
    other pair of bytes that were stored too came back wrong.
    """
    finite = tl.where(value - value == 0.0, value, 0.0)
    if not _CAST_ROUNDS:
        return finite_number(finite * inverse)
    first = (finite * inverse).to(tl.float32)
    return tl.inline_asm_elementwise(
        _THERE_AND_BACK, "=&f,=&f,f,f", [first], dtype=tl.float32, is_pure=True, pack=2
    )


@triton.jit
def magnitude(value):
    """Return fp32 without its sign as whole numbers, which are in the same order, NaN on top."""
    return value.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _add_and_top(sum_a, top_a, sum_b, top_b):
    return sum_a + sum_b, tl.maximum(top_a, top_b)


@triton.jit
def scales_of_top(magnitude):
    """Return the scale of a row by its largest magnitude, and the inverse for its numbers.

    The scale of a row with NaN or an infinity is NaN, and so is all that it is multiplied by.
    """
    top = magnitude.to(tl.float32, bitcast=True)
    scale = scale_of(top)
    return scale + (top - top), 1.0 / scale


@triton.jit
def _load_piece(source, piece, K: tl.constexpr, BLOCK: tl.constexpr):
    """Load BLOCK columns of a row in fp32, those from K on as zeros."""
    offs = piece * BLOCK + tl.arange(0, BLOCK)
    # A piece that fits needs no mask; with one the loads would be checked element by element.
    if (piece + 1) * BLOCK <= K:
        return tl.load(source + offs).to(tl.float32)
    return tl.load(source + offs, mask=offs < K, other=0.0).to(tl.float32)


@triton.jit
def _store_piece(target, piece, value, K: tl.constexpr, BLOCK: tl.constexpr):
    """Store BLOCK columns of a row up to K."""
    offs = piece * BLOCK + tl.arange(0, BLOCK)
    if (piece + 1) * BLOCK <= K:
        tl.store(target + offs, value)
    else:
        tl.store(target + offs, value, mask=offs < K)


@triton.jit
def _store_groups(values, scales, group_stride, piece, value, factor, K: tl.constexpr,
                  BLOCK: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """Round BLOCK columns of a row by groups of them, each to a scale of its own times factor."""
    PARTS: tl.constexpr = BLOCK // GROUP
    apart = tl.reshape(value, (PARTS, GROUP))
    scale, inverse = scales_of_top(tl.max(magnitude(apart), axis=1))
    whole = tl.reshape(apart * inverse[:, None], (BLOCK,))
    _store_piece(values, piece, row_number(whole), K, BLOCK)
    groups = piece * PARTS + tl.arange(0, PARTS)
    tl.store(scales + groups * group_stride, scale * factor, mask=groups * GROUP < K)


@triton.jit
def _quantize_rows_kernel(x, values, scales, K: tl.constexpr, BLOCK: tl.constexpr,
                          PIECES: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    release_successor(PDL)
    row = tl.program_id(0).to(tl.int64)
    tops = tl.zeros([BLOCK], tl.int32)
    held = ()
    wait_for_inputs(PDL)
    for piece in tl.static_range(PIECES):
        value = _load_piece(x + row * K, piece, K, BLOCK)
        tops = tl.maximum(tops, magnitude(value))
        held += (value,)
    scale, inverse = scales_of_top(tl.max(tops))
    for piece in tl.static_range(PIECES):
        _store_piece(values + row * K, piece, row_number(held[piece] * inverse), K, BLOCK)
    tl.store(scales + row, scale)


@triton.jit
def _norm_quantized_kernel(
    x, residual, weight, values, scales, group_stride, added, eps, K: tl.constexpr,
    BLOCK: tl.constexpr, PIECES: tl.constexpr, GROUP: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Round rms_norm(x + residual) * weight, with a scale per row or, if not 0, GROUP columns.

    The norm is one factor of a row, which its largest number takes out again: sum of squares and
    largest number are found at once, and the factor is in the scale alone.
    """
    release_successor(PDL)
    row = tl.program_id(0).to(tl.int64)
    weights = ()
    for piece in tl.static_range(PIECES):
        weights += (_load_piece(weight, piece, K, BLOCK),)
    tops = tl.zeros([BLOCK], tl.int32)
    squares = tl.zeros([BLOCK], tl.float32)
    held = ()
    wait_for_inputs(PDL)
    for piece in tl.static_range(PIECES):
        value = _load_piece(x + row * K, piece, K, BLOCK)
        if HAS_RESIDUAL:
            value += _load_piece(residual + row * K, piece, K, BLOCK)
            _store_piece(added + row * K, piece, value, K, BLOCK)
        squares += value * value
        value *= weights[piece]
        tops = tl.maximum(tops, magnitude(value))
        held += (value,)
    total, top = tl.reduce((squares, tops), 0, _add_and_top)
    factor = tl.rsqrt(total / K + eps)
    if GROUP == 0:
        scale, inverse = scales_of_top(top)
        for piece in tl.static_range(PIECES):
            _store_piece(values + row * K, piece, row_number(held[piece] * inverse), K, BLOCK)
        tl.store(scales + row, scale * factor)
    else:
        for piece in tl.static_range(PIECES):
            _store_groups(values + row * K, scales + row, group_stride, piece, held[piece], factor,
                          K, BLOCK, GROUP)  # fmt: skip


@triton.jit
def _gated_quantized_kernel(gate_up, values, scales, group_stride, K: tl.constexpr,
                            BLOCK: tl.constexpr, PIECES: tl.constexpr, GROUP: tl.constexpr,
                            KIND: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Round act(gate) * up with a scale per row or, if not 0, GROUP columns."""
    release_successor(PDL)
    row = tl.program_id(0).to(tl.int64)
    source = gate_up + row * 2 * K
    tops = tl.zeros([BLOCK], tl.int32)
    held = ()
    wait_for_inputs(PDL)
    for piece in tl.static_range(PIECES):
        value = gate(_load_piece(source, piece, K, BLOCK), KIND)
        value *= _load_piece(source + K, piece, K, BLOCK)
        if GROUP == 0:
            tops = tl.maximum(tops, magnitude(value))
            held += (value,)
        else:
            _store_groups(values + row * K, scales + row, group_stride, piece, value, 1.0, K, BLOCK,
                          GROUP)  # fmt: skip
    if GROUP == 0:
        scale, inverse = scales_of_top(tl.max(tops))
        for piece in tl.static_range(PIECES):
            _store_piece(values + row * K, piece, row_number(held[piece] * inverse), K, BLOCK)
        tl.store(scales + row, scale)


@triton.jit
def _quantize_groups_kernel(x, values, scales, group_stride, K: tl.constexpr,
                            GROUPS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
                            PDL: tl.constexpr):  # fmt: skip
    """Round BLOCK groups of a row, each to its own scale."""
    release_successor(PDL)
    row = tl.program_id(0).to(tl.int64)
    groups = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    offs = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    mask = offs < K
    wait_for_inputs(PDL)
    value = tl.load(x + row * K + offs, mask=mask, other=0.0).to(tl.float32)
    scale, inverse = scales_of_top(tl.max(magnitude(value), axis=1))
    tl.store(values + row * K + offs, row_number(value * inverse[:, None]), mask=mask)
    tl.store(scales + groups * group_stride + row, scale, mask=groups < GROUPS)


def _num_groups(width: int, by_groups: bool) -> int | None:
    """Return how many scales a row has, None for one alone."""
    return ceil_div(width, GROUP) if by_groups else None


def _pieces(num_rows: int, width: int, a_thread: int = 8) -> dict[str, int]:
    """Return how a program holds a row: pieces of so many columns a thread."""
    threads = _FEW_ROWS_THREADS if num_rows <= _FEW_ROWS else _THREADS
    block = min(threads * a_thread, max(next_power_of_2(width), GROUP))
    return {
        "BLOCK": block,
        "PIECES": ceil_div(width, block),
        "num_warps": max(1, block // (32 * a_thread)),
    }


def quantize_rows(x: Tensor) -> QuantizedRows:
    """x: [T, K], contiguous -> the same in e4m3; a row's largest value becomes 448.

    Twin: reference.quantize_rows.
    """
    require_contiguous(x=x)
    num_rows, width = x.shape
    rows = QuantizedRows.empty(num_rows, width, x.device)
    if num_rows:
        _quantize_rows_kernel[(num_rows,)](
            x, rows.values, rows.scales, K=width, **_pieces(num_rows, width),
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
            x, rows.values, rows.scales, rows.group_stride, K=width, GROUPS=num_groups, BLOCK=block,
            GROUP=GROUP, num_warps=max(1, block // 2), **dependent_launch(x.device),
        )  # fmt: skip
    return rows


def add_rms_norm_quantized(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, *, by_groups: bool = False
) -> tuple[QuantizedRows, Tensor]:
    """Return rms_norm(x + residual) in e4m3 and x + residual; see `norm.add_rms_norm`.

    Args: x, residual: [T, K], contiguous, each of its own dtype; weight: [K]. by_groups: give each
        GROUP columns a scale of their own.
    Returns: [T, K] rounded once, from fp32, and the fp32 sum; x itself without a residual.
    """
    num_rows, width = x.shape
    require_contiguous(x=x, residual=residual, weight=weight)
    require(residual is None or residual.shape == x.shape, "residual and x differ in shape")
    require(weight.shape == (width,), f"weight has shape {tuple(weight.shape)}, x is {width} wide")
    rows = QuantizedRows.empty(num_rows, width, x.device, _num_groups(width, by_groups))
    added = x if residual is None else torch.empty_like(x, dtype=torch.float32)
    if num_rows:
        _norm_quantized_kernel[(num_rows,)](
            x, residual, weight, rows.values, rows.scales, rows.group_stride, added, eps, K=width,
            GROUP=GROUP if by_groups else 0, HAS_RESIDUAL=residual is not None,
            **_pieces(num_rows, width, 4),
            **dependent_launch(x.device),
        )  # fmt: skip
    return rows, added


def gated_act_quantized(
    gate_up: Tensor, kind: ActivationKind = "silu", *, by_groups: bool = False
) -> QuantizedRows:
    """gate_up: [T, 2 I], contiguous, gates first -> act(gate) * up in e4m3, rounded once.

    by_groups: give each GROUP columns a scale of their own.
    """
    num_rows, double = gate_up.shape
    require_contiguous(gate_up=gate_up)
    require(double % 2 == 0, f"gate_up is {double} wide")
    require(kind in KINDS, f"unknown activation {kind!r}, have {KINDS}")
    width = double // 2
    rows = QuantizedRows.empty(num_rows, width, gate_up.device, _num_groups(width, by_groups))
    if num_rows:
        _gated_quantized_kernel[(num_rows,)](
            gate_up, rows.values, rows.scales, rows.group_stride, K=width,
            GROUP=GROUP if by_groups else 0, KIND=kind, **_pieces(num_rows, width),
            **dependent_launch(gate_up.device),
        )  # fmt: skip
    return rows
