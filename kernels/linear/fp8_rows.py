"""FP8 matrix products of few rows: the weights are the tall operand, read once for all rows."""

# Triton unrolls the loops over tuples, mypy cannot.
# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
# mypy: disable-error-code="assignment"
from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from tokenbus.kernels.activation import gate
from tokenbus.kernels.launch import release_successor, wait_for_inputs
from tokenbus.kernels.linear.block_scales import load_by_output, load_by_row, multiplied


@dataclass(frozen=True, slots=True)
class RowsTuning:
    """How one shape is laid out: outputs and columns per step of a program.

    stages: steps in flight. splits: programs that share the columns of one tile; the last of them
    to end adds up what all found.
    """

    block_n: int
    block_k: int
    num_warps: int
    stages: int
    splits: int = 1


@triton.jit
def _sum_parts(acc, parts, tile, arrivals, SPLITS: tl.constexpr, SIZE: tl.constexpr, offs):
    """Leave the sums of this program, and return those of all and whether it was the last.

    In the order of the columns, whichever program comes last, so that timing does not matter.
    """
    base = parts + tile.to(tl.int64) * (SPLITS * SIZE)
    tl.store(base + tl.program_id(1) * SIZE + offs, acc, cache_modifier=".cg")
    tl.debug_barrier()
    is_last = tl.atomic_add(arrivals + tile, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
    if is_last:
        tl.debug_barrier()
        tl.store(arrivals + tile, 0)
        acc = tl.zeros_like(acc)
        for part in tl.static_range(SPLITS):
            acc += tl.load(base + part * SIZE + offs, cache_modifier=".cg")
    return acc, is_last


@triton.jit
def _scaled(product, x_scales, group_stride, scales, rows, M, first, outputs, N, block,
            GROUPS: tl.constexpr, BLOCK_OUT: tl.constexpr, ONE_SCALE: tl.constexpr):  # fmt: skip
    """Multiply a block's product, [outputs, rows], by the scales of both.

    Beyond the last block those of the last: all weights are zero there.
    """
    at = tl.minimum(block, GROUPS - 1)
    by_row = load_by_row(x_scales, group_stride, rows, M, at)
    by_out = load_by_output(scales, first, outputs, N, at, GROUPS, BLOCK_OUT, ONE_SCALE)
    return product * multiplied(by_row, by_out, ONE_SCALE).T


@triton.jit(do_not_specialize=["M"])
def fp8_rows_kernel(
    x, x_scales, group_stride, weight, scales, bias, residual, out, parts, arrivals, M, N,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_OUT: tl.constexpr, ONE_SCALE: tl.constexpr, SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, ACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute [M, BLOCK_N] outputs: bias, gate and residual behind; x, weight are descriptors.

    With splits every program has the columns of one part; a gate has no splits. If BLOCK_OUT is not
    0, scales are those of blocks of so many outputs and BLOCK_K columns, x_scales of rows and
    BLOCK_K columns, and every block's product is scaled by itself.
    """
    release_successor(PDL)
    tile = tl.program_id(0)
    col = tile * BLOCK_N
    SPAN: tl.constexpr = (K + SPLITS * BLOCK_K - 1) // (SPLITS * BLOCK_K) * BLOCK_K
    begin = tl.program_id(1) * SPAN
    acc = tl.zeros([BLOCK_N, ROWS], tl.float32)
    acc_up = tl.zeros([BLOCK_N, ROWS], tl.float32)
    # What the end needs is on its way from the beginning, not when everyone waits for it.
    rows = tl.arange(0, ROWS)
    some = rows < M
    cols = col + tl.arange(0, BLOCK_N)
    live = cols < N
    mask = live[:, None] & some[None, :]
    place = rows[None, :].to(tl.int64) * N + cols[:, None]
    GROUPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    if BLOCK_OUT == 0:
        scale_out = tl.load(scales + cols, mask=live, other=0.0)[:, None]
        if ACT != "none":
            scale_up = tl.load(scales + N + cols, mask=live, other=0.0)[:, None]
    if HAS_BIAS:
        shift = tl.load(bias + cols, mask=live, other=0.0).to(tl.float32)[:, None]
        if ACT != "none":
            shift_up = tl.load(bias + N + cols, mask=live, other=0.0).to(tl.float32)[:, None]
    wait_for_inputs(PDL)
    if BLOCK_OUT == 0:
        by_row = tl.load(x_scales + rows, mask=some, other=0.0)[None, :]
    if HAS_RESIDUAL and SPLITS == 1:
        earlier = tl.load(residual + place, mask=mask, other=0.0)
    for offset in range(0, SPAN, BLOCK_K):
        start = begin + offset
        value = x.load([0, start]).T
        if BLOCK_OUT == 0:
            acc = tl.dot(weight.load([col, start]), value, acc)
            if ACT != "none":
                acc_up = tl.dot(weight.load([N + col, start]), value, acc_up)
        else:
            product = tl.dot(weight.load([col, start]), value)
            acc += _scaled(product, x_scales, group_stride, scales, rows, M, col, cols, N,
                           start // BLOCK_K, GROUPS, BLOCK_OUT, ONE_SCALE)  # fmt: skip
            if ACT != "none":
                product = tl.dot(weight.load([N + col, start]), value)
                acc_up += _scaled(product, x_scales, group_stride, scales, rows, M, N + col,
                                  N + cols, 2 * N, start // BLOCK_K, GROUPS, BLOCK_OUT,
                                  ONE_SCALE)  # fmt: skip
    is_last = True
    if SPLITS > 1:
        offs = tl.arange(0, ROWS)[None, :] * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
        acc, is_last = _sum_parts(acc, parts, tile, arrivals, SPLITS, ROWS * BLOCK_N, offs)
    if is_last:
        if BLOCK_OUT == 0:
            acc *= scale_out * by_row
        if HAS_BIAS:
            acc += shift
        if ACT != "none":
            if BLOCK_OUT == 0:
                acc_up *= scale_up * by_row
            if HAS_BIAS:
                acc_up += shift_up
            acc = gate(acc, ACT) * acc_up
        if HAS_RESIDUAL:
            if SPLITS > 1:
                earlier = tl.load(residual + place, mask=mask, other=0.0)
            acc += earlier
            tl.store(residual + place, acc, mask=mask)
        tl.store(out + place, acc.to(out.dtype.element_ty), mask=mask)
