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
from tokenbus.kernels.linear.block_scales import (
    fetch_early,
    load_by_output,
    multiplied,
)


@dataclass(frozen=True, slots=True)
class RowsTuning:
    """How one shape is laid out: outputs and columns per step of a program.

    stages: steps in flight. splits: programs that share the columns of one tile; the last of them
    to end adds up what all found. blocks: blocks of columns with a scale each per step: the scales
    of the next step are on their way for as long.
    """

    block_n: int
    block_k: int
    num_warps: int
    stages: int
    splits: int = 1
    blocks: int = 1


@triton.jit
def _sum_parts(acc, parts, tile, arrivals, SPLITS: tl.constexpr, SIZE: tl.constexpr, offs):
    """Leave the sums of this program, and return those of all and whether it was the last.

    In the order of the columns, whoever comes last, so that the result does not depend on timing.
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
def _scales(x_scales, group_stride, scales, rows, first, outputs, N, block,
            GROUPS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_OUT: tl.constexpr,
            ONE_SCALE: tl.constexpr):  # fmt: skip
    """Load the scales of rows and outputs for some blocks of columns.

    Beyond the last block those of the last: all weights are zero there.
    """
    found = ()
    for part in tl.static_range(BLOCKS):
        at = tl.minimum(block + part, GROUPS - 1)
        # Memory goes on behind the rows, and with no mask numbers are loaded in pairs.
        by_row = tl.load(x_scales + at * group_stride + rows)
        by_out = load_by_output(scales, first, outputs, N, at, GROUPS, BLOCK_OUT, ONE_SCALE)
        found += ((by_row, by_out),)
    return found


@triton.jit
def _multiplied(found, BLOCKS: tl.constexpr, ONE_SCALE: tl.constexpr):
    """Return what the products of some blocks are multiplied by, [outputs or 1, rows] each."""
    factors = ()
    for part in tl.static_range(BLOCKS):
        by_row, by_out = found[part]
        factors += (multiplied(by_row, by_out, ONE_SCALE).T,)
    return factors


@triton.jit
def _factors(x_scales, group_stride, scales, rows, first, outputs, N, block,
             GROUPS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_OUT: tl.constexpr,
             ONE_SCALE: tl.constexpr):  # fmt: skip
    """Load the scales of rows and outputs for some blocks, and multiply them."""
    found = _scales(x_scales, group_stride, scales, rows, first, outputs, N, block, GROUPS,
                    BLOCKS, BLOCK_OUT, ONE_SCALE)  # fmt: skip
    return _multiplied(found, BLOCKS, ONE_SCALE)


@triton.jit(do_not_specialize=["M"])
def fp8_rows_kernel(
    x, x_scales, group_stride, weight, scales, bias, residual, out, parts, arrivals, M, N,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK_OUT: tl.constexpr, ONE_SCALE: tl.constexpr, SPLITS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute [M, BLOCK_N] outputs: bias, gate and residual behind; x, weight are descriptors.

    With splits every program has the columns of one part; a gate has no splits. If BLOCK_OUT is not
    0, scales are those of blocks of so many outputs and BLOCK_K columns, x_scales of rows and
    BLOCK_K columns, and every block's product is scaled by itself. Scales are asked for at the
    beginning of the step before, and waited for at its end.
    """
    release_successor(PDL)
    tile = tl.program_id(0)
    col = tile * BLOCK_N
    STEP: tl.constexpr = BLOCK_K * BLOCKS
    SPAN: tl.constexpr = (K + SPLITS * STEP - 1) // (SPLITS * STEP) * STEP
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
    if BLOCK_OUT > 0:
        fetch_early(scales, col, GROUPS, BLOCK_OUT, PDL)
        if ACT != "none":
            fetch_early(scales, N + col, GROUPS, BLOCK_OUT, PDL)
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
    if BLOCK_OUT == 0:
        for offset in range(0, SPAN, BLOCK_K):
            value = x.load([0, begin + offset])
            acc = tl.dot(weight.load([col, begin + offset]), value.T, acc)
            if ACT != "none":
                acc_up = tl.dot(weight.load([N + col, begin + offset]), value.T, acc_up)
    else:
        factors = _factors(x_scales, group_stride, scales, rows, col, cols, N, begin // BLOCK_K,
                           GROUPS, BLOCKS, BLOCK_OUT, ONE_SCALE)  # fmt: skip
        up_factors = factors
        if ACT != "none":
            up_factors = _factors(x_scales, group_stride, scales, rows, N + col, N + cols, 2 * N,
                                  begin // BLOCK_K, GROUPS, BLOCKS, BLOCK_OUT,
                                  ONE_SCALE)  # fmt: skip
        for offset in range(0, SPAN, STEP):
            following = (begin + offset) // BLOCK_K + BLOCKS
            coming = _scales(x_scales, group_stride, scales, rows, col, cols, N, following,
                             GROUPS, BLOCKS, BLOCK_OUT, ONE_SCALE)  # fmt: skip
            up_coming = coming
            if ACT != "none":
                up_coming = _scales(x_scales, group_stride, scales, rows, N + col, N + cols,
                                    2 * N, following, GROUPS, BLOCKS, BLOCK_OUT,
                                    ONE_SCALE)  # fmt: skip
            for part in tl.static_range(BLOCKS):
                start = begin + offset + part * BLOCK_K
                value = x.load([0, start])
                acc += tl.dot(weight.load([col, start]), value.T) * factors[part]
                if ACT != "none":
                    acc_up += tl.dot(weight.load([N + col, start]), value.T) * up_factors[part]
            factors = _multiplied(coming, BLOCKS, ONE_SCALE)
            up_factors = _multiplied(up_coming, BLOCKS, ONE_SCALE) if ACT != "none" else factors
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
