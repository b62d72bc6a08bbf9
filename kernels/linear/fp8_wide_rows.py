"""Products of a few rows as they are with FP8 weights: weights are widened on their way.

A number of e4m3 shifted to the exponent and digits of bfloat16 stands for 2^-120 of itself, which
is exact, small numbers included; the scales of the outputs make up for it.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    release_successor,
    require,
    require_contiguous,
    wait_for_inputs,
)
from tokenbus.kernels.linear.fp8_rows import RowsTuning, sum_parts
from tokenbus.kernels.linear.fp8_shapes import check_product
from tokenbus.kernels.linear.fp8_table import choose_wide_tuning
from tokenbus.kernels.linear.small_linear import PLAIN, Fusion

if TYPE_CHECKING:
    from torch import Tensor

# Rows up to which weights are widened: as many as the narrowest product of a matrix unit has.
MAX_WIDE_ROWS = 8
_ROWS = tl.constexpr(MAX_WIDE_ROWS)
# Tiles that share columns, over all launches at a time: a count each.
_MAX_TILES = 4096
# What a shifted number is multiplied by to be itself again.
_UNSHIFTED = tl.constexpr(2.0**120)


@triton.jit
def _widened(values, DTYPE: tl.constexpr, SHIFTED: tl.constexpr):
    """Return numbers of e4m3 in `DTYPE`, or 2^-120 of each in bfloat16."""
    if not SHIFTED:
        return values.to(DTYPE)
    return tl.inline_asm_elementwise(
        """
        {
            .reg .b32 low, high, below, above;
            prmt.b32 low, $2, 0, 0x1404;
            prmt.b32 high, $2, 0, 0x3424;
            and.b32 below, low, 0x7f007f00;
            and.b32 above, high, 0x7f007f00;
            shr.u32 below, below, 4;
            shr.u32 above, above, 4;
            lop3.b32 $0, low, 0x80008000, below, 0xea;
            lop3.b32 $1, high, 0x80008000, above, 0xea;
        }
        """,
        "=r,=r,r", [values], dtype=tl.bfloat16, is_pure=True, pack=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["M"])
def fp8_wide_rows_kernel(
    x, weight, scales, bias, residual, out, parts, arrivals, M, N, K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, STAGES: tl.constexpr,
    SHIFTED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute [M, BLOCK_N] outputs: bias and residual behind; x, weight are descriptors.

    With splits every program has the columns of one part. SHIFTED: for rows of bfloat16, to which
    there is no instruction.
    """
    release_successor(PDL)
    tile = tl.program_id(0)
    col = tile * BLOCK_N
    SPAN: tl.constexpr = (K + SPLITS * BLOCK_K - 1) // (SPLITS * BLOCK_K) * BLOCK_K
    begin = tl.program_id(1) * SPAN
    acc = tl.zeros([BLOCK_N, _ROWS], tl.float32)
    rows = tl.arange(0, _ROWS)
    some = rows < M
    cols = col + tl.arange(0, BLOCK_N)
    live = cols < N
    mask = live[:, None] & some[None, :]
    place = rows[None, :].to(tl.int64) * N + cols[:, None]
    # What the end needs is on its way from the beginning, not when everyone waits for it.
    scale_out = tl.load(scales + cols, mask=live, other=0.0)[:, None]
    if SHIFTED:
        scale_out *= _UNSHIFTED
    if HAS_BIAS:
        shift = tl.load(bias + cols, mask=live, other=0.0).to(tl.float32)[:, None]
    wait_for_inputs(PDL)
    if HAS_RESIDUAL and SPLITS == 1:
        earlier = tl.load(residual + place, mask=mask, other=0.0)
    for offset in tl.range(0, SPAN, BLOCK_K, num_stages=STAGES):
        start = begin + offset
        values = _widened(weight.load([col, start]), x.dtype, SHIFTED)
        acc = tl.dot(values, x.load([0, start]).T, acc)
    is_last = True
    if SPLITS > 1:
        offs = rows[None, :] * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
        acc, is_last = sum_parts(acc, parts, tile, arrivals, SPLITS, _ROWS * BLOCK_N, offs)
    if is_last:
        acc *= scale_out
        if HAS_BIAS:
            acc += shift
        if HAS_RESIDUAL:
            if SPLITS > 1:
                earlier = tl.load(residual + place, mask=mask, other=0.0)
            acc += earlier
            tl.store(residual + place, acc, mask=mask)
        tl.store(out + place, acc.to(out.dtype.element_ty), mask=mask)


@cache
def _arrivals(device: torch.device) -> Tensor:
    """Return the counts of programs that ended, zero between launches."""
    return torch.zeros(_MAX_TILES, dtype=torch.int32, device=device)


def fp8_wide_linear(
    x: Tensor,
    values: Tensor,
    scales: Tensor,
    fusion: Fusion = PLAIN,
    *,
    tuning: RowsTuning | None = None,
) -> Tensor:
    """Multiply up to 8 rows, as they are, by an FP8 weight, with bias and residual behind.

    Args:
        x: [M, K] bfloat16 or float16, contiguous. values: [N, K] e4m3.
        scales: [N] float32, of the outputs. fusion: bias and residual at most.
    Returns: [M, N], dtype of x; sums and everything fused are fp32.
    Raises: KernelInputError on other shapes. Twin: reference.fused_linear, weight dequantised.
    """
    num_rows, width_in = x.shape
    width_out = values.shape[0]
    require(1 <= num_rows <= MAX_WIDE_ROWS, f"{num_rows} rows, this takes 1 to {MAX_WIDE_ROWS}")
    require(x.element_size() == 2, f"rows are {x.dtype}, not of two bytes")
    require(fusion.norm_weight is None and fusion.act is None, "neither norm nor gate is fused")
    check_product(x, values, fusion, width_out)
    require_contiguous(values=values)
    tuning = tuning or choose_wide_tuning(width_in, width_out)
    tiles = ceil_div(width_out, tuning.block_n)
    out = torch.empty(num_rows, width_out, dtype=x.dtype, device=x.device)
    parts = arrivals = None
    if tuning.splits > 1:
        require(tiles <= _MAX_TILES, f"{tiles} tiles share columns")
        size = (tiles, tuning.splits, MAX_WIDE_ROWS * tuning.block_n)
        parts = torch.empty(size, dtype=torch.float32, device=x.device)
        arrivals = _arrivals(x.device)
    fp8_wide_rows_kernel[(tiles, tuning.splits)](
        TensorDescriptor.from_tensor(x, [MAX_WIDE_ROWS, tuning.block_k]),
        TensorDescriptor.from_tensor(values, [tuning.block_n, tuning.block_k]),
        scales,
        fusion.bias,
        fusion.residual,
        out,
        parts,
        arrivals,
        num_rows,
        width_out,
        K=width_in,
        BLOCK_N=tuning.block_n,
        BLOCK_K=tuning.block_k,
        SPLITS=tuning.splits,
        STAGES=tuning.stages,
        SHIFTED=x.is_cuda and x.dtype == torch.bfloat16,
        HAS_BIAS=fusion.bias is not None,
        HAS_RESIDUAL=fusion.residual is not None,
        num_warps=tuning.num_warps,
        num_stages=tuning.stages,
        **dependent_launch(x.device),
    )
    return out
