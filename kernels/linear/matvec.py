"""Matrix times vector: the linear layer of a lone sequence, without matrix units."""

# Triton unrolls the loops over tuples, mypy cannot.
# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
# mypy: disable-error-code="assignment,misc,var-annotated"
from __future__ import annotations

import triton
import triton.language as tl

from tokenbus.kernels.activation import gate
from tokenbus.kernels.launch import release_successor, wait_for_inputs
from tokenbus.kernels.linear.block_scales import PART, load_parts, part_sums


@triton.jit
def _load_weights(weight, group, block, N, K: tl.constexpr, ROWS: tl.constexpr,
                  BLOCK_K: tl.constexpr, ACT: tl.constexpr):  # fmt: skip
    """Ask for the weights of a block of columns, and those of the outputs that they gate."""
    rows = group.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = block * BLOCK_K + tl.arange(0, BLOCK_K)
    # A block that fits needs no mask; with one the loads would be checked element by element.
    in_k = tl.full([BLOCK_K], True, tl.int1) if (block + 1) * BLOCK_K <= K else k < K
    mask = (rows < N)[:, None] & in_k[None, :]
    place = weight + rows[:, None] * K + k[None, :]
    w = tl.load(place, mask=mask, other=0.0, eviction_policy="evict_first")
    if ACT == "none":
        return w, w
    return w, tl.load(place + N * K, mask=mask, other=0.0, eviction_policy="evict_first")


@triton.jit
def _load_columns(scales, group, block, N, K: tl.constexpr, ROWS: tl.constexpr,
                  BLOCK_K: tl.constexpr, BLOCK_OUT: tl.constexpr, ACT: tl.constexpr):  # fmt: skip
    """Load the scales of the blocks that some outputs lie in, by parts, and of those they gate.

    1 where weights have none, or one per output.
    """
    if BLOCK_OUT == 0:
        scale, scale_up = 1.0, 1.0
    else:
        first = tl.minimum(group * ROWS, N - 1)
        scale = load_parts(scales, first // BLOCK_OUT, block, K, BLOCK_K)
        scale_up = scale
        if ACT != "none":
            scale_up = load_parts(scales, (N + first) // BLOCK_OUT, block, K, BLOCK_K)
    return scale, scale_up


@triton.jit
def _load_shift(values, group, N, NEEDED: tl.constexpr, ROWS: tl.constexpr, ACT: tl.constexpr):
    """Load a number per output, and those of the outputs that they gate; zeros if not needed."""
    rows = group.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = tl.zeros([ROWS], tl.float32)
    second = first
    if NEEDED:
        first = tl.load(values + rows, mask=rows < N, other=0.0).to(tl.float32)
        if ACT != "none":
            second = tl.load(values + N + rows, mask=rows < N, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def _spread(values, SHAPE: tl.constexpr, BY_WARP: tl.constexpr):
    """Repeat addresses of columns for every row if each warp has rows of its own."""
    return tl.broadcast_to(values[None, :], SHAPE) if BY_WARP else values


@triton.jit
def matvec_kernel(
    x, weight, scales, bias, residual, norm_weight, out, N, eps, K: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_K: tl.constexpr, GROUPS: tl.constexpr, AHEAD: tl.constexpr,
    BY_WARP: tl.constexpr, HAS_SCALES: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr, ADD_ONE: tl.constexpr, ACT: tl.constexpr,
    BLOCK_OUT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute GROUPS times ROWS outputs: norm in front, bias, gate and residual behind.

    Rounded weights have a scale per output, which is applied to the finished sums, or if BLOCK_OUT
    is not 0 per block of so many outputs, which ROWS divides, and 128 columns: what a thread finds
    in PART columns is scaled by it.

    Weights do not depend on the previous kernel: AHEAD pieces, each of a group and a block of
    columns, are on their way before this one waits for its inputs, and as many stay so. The norm's
    scale is one number per row of x, so it is applied to the finished sums. BY_WARP: a warp has
    whole rows, and loads the columns of x for itself: nothing passes between warps.
    """
    release_successor(PDL)
    first = tl.program_id(0) * GROUPS
    offs = tl.arange(0, BLOCK_K)
    BLOCKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    # The sums of each group, the squares of x, and the pieces on their way.
    zeros = tl.zeros([ROWS, BLOCK_K if BLOCK_OUT == 0 else BLOCK_K // PART], tl.float32)
    squares = tl.zeros([ROWS, BLOCK_K] if BY_WARP else [BLOCK_K], tl.float32)
    sums = ()
    coming = ()
    ends = ()
    earlier = ()
    for turn in tl.static_range(GROUPS):
        sums += ((zeros, zeros),)
        # What the end needs is on its way from the beginning, not when everyone waits for it.
        ends += (
            _load_shift(scales, first + turn, N, HAS_SCALES and BLOCK_OUT == 0, ROWS, ACT)
            + _load_shift(bias, first + turn, N, HAS_BIAS, ROWS, ACT),
        )
    for step in tl.static_range(min(AHEAD, GROUPS * BLOCKS)):
        coming += (
            _load_weights(weight, first + step % GROUPS, step // GROUPS, N, K, ROWS, BLOCK_K, ACT)
            + _load_columns(scales, first + step % GROUPS, step // GROUPS, N, K, ROWS, BLOCK_K,
                            BLOCK_OUT, ACT),
        )  # fmt: skip
    for block in tl.static_range(BLOCKS):
        k = block * BLOCK_K + offs
        in_k = tl.full([BLOCK_K], True, tl.int1) if (block + 1) * BLOCK_K <= K else k < K
        k = _spread(k, [ROWS, BLOCK_K], BY_WARP)
        in_k = _spread(in_k, [ROWS, BLOCK_K], BY_WARP)
        if HAS_NORM:
            scale = tl.load(norm_weight + k, mask=in_k, other=0.0).to(tl.float32)
            if ADD_ONE:
                scale += 1.0
        if block == 0:
            wait_for_inputs(PDL)
        value = tl.load(x + k, mask=in_k, other=0.0).to(tl.float32)
        if block == 0:
            for turn in tl.static_range(GROUPS):
                earlier += (_load_shift(residual, first + turn, N, HAS_RESIDUAL, ROWS, "none"),)
        if HAS_NORM:
            squares += value * value
            value *= scale
        if not BY_WARP:
            value = value[None, :]
        for turn in tl.static_range(GROUPS):
            w, w_up, by_part, by_part_up = coming[0]
            coming = coming[1:]
            acc, acc_up = sums[0]
            sums = sums[1:]
            if BLOCK_OUT == 0:
                acc += w.to(tl.float32) * value
            else:
                acc += part_sums(w, value) * by_part[None, :]
            if ACT != "none":
                if BLOCK_OUT == 0:
                    acc_up += w_up.to(tl.float32) * value
                else:
                    acc_up += part_sums(w_up, value) * by_part_up[None, :]
            sums += ((acc, acc_up),)
            if block * GROUPS + turn + AHEAD < GROUPS * BLOCKS:
                coming += (
                    _load_weights(weight, first + (turn + AHEAD) % GROUPS,
                                  block + (turn + AHEAD) // GROUPS, N, K, ROWS, BLOCK_K, ACT)
                    + _load_columns(scales, first + (turn + AHEAD) % GROUPS,
                                    block + (turn + AHEAD) // GROUPS, N, K, ROWS, BLOCK_K,
                                    BLOCK_OUT, ACT),
                )  # fmt: skip
    norm = 1.0
    for turn in tl.static_range(GROUPS):
        acc, acc_up = sums[turn]
        scale_out, scale_up, shift, shift_up = ends[turn]
        rows = (first + turn).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        y = tl.sum(acc, axis=1)
        if HAS_NORM:
            if turn == 0:
                norm = tl.rsqrt(tl.sum(squares, axis=1 if BY_WARP else 0) / K + eps)
            y *= norm
        if HAS_SCALES and BLOCK_OUT == 0:
            y *= scale_out
        if HAS_BIAS:
            y += shift
        if ACT != "none":
            up = tl.sum(acc_up, axis=1) * norm
            if HAS_SCALES and BLOCK_OUT == 0:
                up *= scale_up
            if HAS_BIAS:
                up += shift_up
            y = gate(y, ACT) * up
        if HAS_RESIDUAL:
            y += earlier[turn][0]
            tl.store(residual + rows, y, mask=rows < N)
        tl.store(out + rows, y.to(out.dtype.element_ty), mask=rows < N)
