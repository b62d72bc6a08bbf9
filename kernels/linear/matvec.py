"""Matrix times vector: the linear layer of a lone sequence, without matrix units."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from tokenbus.kernels.activation import gate
from tokenbus.kernels.launch import release_successor, wait_for_inputs


@triton.jit
def matvec_kernel(
    x, weight, scales, bias, residual, norm_weight, out, N, eps, K: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_K: tl.constexpr, HAS_SCALES: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr,
    ADD_ONE: tl.constexpr, ACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute ROWS outputs: norm in front, bias, gate and residual behind.

    Rounded weights have a scale per output, which is applied to the finished sums.

    The weights of the first block do not depend on the previous kernel: they are on their way
    before this one waits for its inputs. The norm's scale is one number per row of x, so it is
    applied to the finished sums.
    """
    release_successor(PDL)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = rows < N
    offs = tl.arange(0, BLOCK_K)
    # What the end needs is on its way from the beginning, not when everyone waits for it.
    if HAS_SCALES:
        scale_out = tl.load(scales + rows, mask=live, other=0.0)
        if ACT != "none":
            scale_up = tl.load(scales + N + rows, mask=live, other=0.0)
    if HAS_BIAS:
        shift = tl.load(bias + rows, mask=live, other=0.0).to(tl.float32)
        if ACT != "none":
            shift_up = tl.load(bias + N + rows, mask=live, other=0.0).to(tl.float32)
    acc = tl.zeros([ROWS, BLOCK_K], tl.float32)
    acc_up = tl.zeros([ROWS, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for block in tl.static_range((K + BLOCK_K - 1) // BLOCK_K):
        k = block * BLOCK_K + offs
        # A block that fits needs no mask; with one the loads would be checked element by element.
        in_k = tl.full([BLOCK_K], True, tl.int1) if (block + 1) * BLOCK_K <= K else k < K
        mask = live[:, None] & in_k[None, :]
        place = weight + rows[:, None] * K + k[None, :]
        w = tl.load(place, mask=mask, other=0.0, eviction_policy="evict_first")
        if ACT != "none":
            w_up = tl.load(place + N * K, mask=mask, other=0.0, eviction_policy="evict_first")
        if HAS_NORM:
            scale = tl.load(norm_weight + k, mask=in_k, other=0.0).to(tl.float32)
            if ADD_ONE:
                scale += 1.0
        if block == 0:
            wait_for_inputs(PDL)
            if HAS_RESIDUAL:
                earlier = tl.load(residual + rows, mask=live, other=0.0)
        value = tl.load(x + k, mask=in_k, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += value * value
            value *= scale
        acc += w.to(tl.float32) * value[None, :]
        if ACT != "none":
            acc_up += w_up.to(tl.float32) * value[None, :]
    y = tl.sum(acc, axis=1)
    norm = 1.0
    if HAS_NORM:
        norm = tl.rsqrt(tl.sum(squares) / K + eps)
        y *= norm
    if HAS_SCALES:
        y *= scale_out
    if HAS_BIAS:
        y += shift
    if ACT != "none":
        up = tl.sum(acc_up, axis=1) * norm
        if HAS_SCALES:
            up *= scale_up
        if HAS_BIAS:
            up += shift_up
        y = gate(y, ACT) * up
    if HAS_RESIDUAL:
        y += earlier
        tl.store(residual + rows, y, mask=live)
    tl.store(out + rows, y.to(out.dtype.element_ty), mask=live)
