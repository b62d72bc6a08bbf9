"""Rows as sums of two numbers of e4m3: what the matrix units multiply steps of four bits by."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    next_power_of_2,
    release_successor,
    require,
    require_contiguous,
    wait_for_inputs,
)
from tokenbus.kernels.quantize import FP8, FP8_MAX, scale_of, to_fp8

if TYPE_CHECKING:
    from torch import Tensor

# Columns that share a sum.
BLOCK = 128
# Rows that are split: more of them have matrix units of their own dtype.
MAX_SPLIT_ROWS = 16
_BLOCK = tl.constexpr(BLOCK)
# Blocks of a program.
_BLOCKS = 8
# A step of four bits, as a number of e4m3, is 2^-9 of itself.
_STEP, _STEPS = tl.constexpr(2.0**-9), tl.constexpr(2.0**9)


@dataclass(frozen=True, slots=True)
class SplitRows:
    """Rows x = (high + low) * scale in e4m3, filled up to 8 or 16 rows, the columns to blocks.

    parts: [2 rows, 128 blocks] e4m3, first all high parts, then all low ones. Sixteen columns each
    are in an order of their own: of 8 h + 2 c + e the number is at 4 c + 2 e + h. scales: [rows]
    float32, 2^9 times the scale. sums: [blocks, 2 rows] float32, of each part 2^-9 times the sum of
    a block. num_rows: rows that hold anything.
    """

    parts: Tensor
    scales: Tensor
    sums: Tensor
    num_rows: int
    width: int
    dtype: torch.dtype

    @property
    def height(self) -> int:
        """Rows with those that hold nothing."""
        return self.scales.shape[0]


@triton.jit
def _split_rows_kernel(
    x, norm_weight, order, parts, scales, sums, eps, K: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, BLOCKS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_ORDER: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Split some blocks of a row, behind a norm if there is one; column j is input order[j].

    What is left of a number behind four digits has four or five digits itself. Its unit is 2^-9 of
    the scale, which is 2^-18 of the row's largest number: every program looks for that itself.
    """
    release_successor(PDL)
    NUM_BLOCKS: tl.constexpr = (K + _BLOCK - 1) // _BLOCK
    row = tl.program_id(0)
    whole = tl.arange(0, WIDTH)
    in_row = whole < K
    blocks = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    offs = tl.arange(0, _BLOCK)
    column = offs // 16 * 16 + offs % 2 * 8 + offs % 16 // 4 * 2 + offs % 4 // 2
    column = blocks[:, None] * _BLOCK + column[None, :]
    mask = column < K
    if HAS_ORDER:
        column = tl.load(order + column, mask=mask, other=0)
    if HAS_NORM:
        w = tl.load(norm_weight + column, mask=mask, other=0.0).to(tl.float32)
        whole_w = tl.load(norm_weight + whole, mask=in_row, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    x += row.to(tl.int64) * K
    whole_x = tl.load(x + whole, mask=in_row, other=0.0).to(tl.float32)
    value = tl.load(x + column, mask=mask, other=0.0).to(tl.float32)
    # The scale of a row with NaN or an infinity is NaN, and so is all that it is multiplied by.
    broken = tl.sum(whole_x - whole_x)
    if HAS_NORM:
        norm = tl.rsqrt(tl.sum(whole_x * whole_x) / K + eps)
        scale = scale_of(tl.max(tl.abs(whole_x * whole_w)) * norm)
        value = value * w * (norm / scale)
    else:
        scale = scale_of(tl.max(tl.abs(whole_x)))
        value = value / scale
    # A product of roundings may come out above what e4m3 has.
    value = tl.minimum(tl.maximum(value, -FP8_MAX), FP8_MAX)
    high = to_fp8(value)
    low = to_fp8(value - high.to(tl.float32))
    place = parts + row * (NUM_BLOCKS * _BLOCK) + blocks[:, None] * _BLOCK + offs[None, :]
    there = blocks < NUM_BLOCKS
    tl.store(place, high, mask=there[:, None])
    tl.store(place + HEIGHT * (NUM_BLOCKS * _BLOCK), low, mask=there[:, None])
    place = sums + blocks * (2 * HEIGHT) + row
    tl.store(place, tl.sum(high.to(tl.float32), axis=1) * _STEP, mask=there)
    tl.store(place + HEIGHT, tl.sum(low.to(tl.float32), axis=1) * _STEP, mask=there)
    if tl.program_id(1) == 0:
        tl.store(scales + row, scale * _STEPS + broken)


def split_rows(
    x: Tensor,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    order: Tensor | None = None,
) -> SplitRows:
    """Split rows, or rms_norm(rows) with `norm_weight`.

    Args:
        x: [M, K], contiguous, 1 <= M <= 16. norm_weight: [K]. order: [K] int64, a permutation:
            column j of the result is column order[j] of the rows.
    Raises: KernelInputError on other shapes. Twin: the rows themselves, or reference.rms_norm.
    """
    num_rows, width = x.shape
    require(1 <= num_rows <= MAX_SPLIT_ROWS, f"{num_rows} rows, 1 to {MAX_SPLIT_ROWS} are split")
    require_contiguous(x=x, norm_weight=norm_weight, order=order)
    for name, tensor in (("norm_weight", norm_weight), ("order", order)):
        require(tensor is None or tensor.shape == (width,), f"{name} is not [{width}]")
    height, num_blocks = (8 if num_rows <= 8 else 16), ceil_div(width, BLOCK)
    rows = SplitRows(
        torch.empty(2 * height, num_blocks * BLOCK, dtype=FP8, device=x.device),
        torch.empty(height, dtype=torch.float32, device=x.device),
        torch.empty(num_blocks, 2 * height, dtype=torch.float32, device=x.device),
        num_rows,
        width,
        x.dtype,
    )
    _split_rows_kernel[(num_rows, ceil_div(num_blocks, _BLOCKS))](
        x,
        norm_weight,
        order,
        rows.parts,
        rows.scales,
        rows.sums,
        eps,
        K=width,
        HEIGHT=height,
        WIDTH=next_power_of_2(width),
        BLOCKS=_BLOCKS,
        HAS_NORM=norm_weight is not None,
        HAS_ORDER=order is not None,
        num_warps=8,
        **dependent_launch(x.device),
    )
    return rows
