"""Two to sixteen rows times a weight matrix: one read of the weights for all rows."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from tokenbus.kernels.activation import gate
from tokenbus.kernels.launch import release_successor, wait_for_inputs


@triton.jit
def _load_slices(base, rows, live, block, K: tl.constexpr, SLICES: tl.constexpr,
                 BLOCK_K: tl.constexpr, EVICT: tl.constexpr):  # fmt: skip
    """Load one block of columns of some rows as [SLICES, rows, BLOCK_K // SLICES]."""
    WIDTH: tl.constexpr = BLOCK_K // SLICES
    k = block * BLOCK_K + tl.arange(0, SLICES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    mask = live[None, :, None] & (k < K)[:, None, :]
    return tl.load(base + rows[None, :, None] * K + k[:, None, :], mask=mask, other=0.0,
                   eviction_policy=EVICT)  # fmt: skip


@triton.jit
def _scale_columns(value, norm_weight, block, K: tl.constexpr, SLICES: tl.constexpr,
                   BLOCK_K: tl.constexpr, ADD_ONE: tl.constexpr):  # fmt: skip
    """Multiply the columns of one block by the norm's weight."""
    WIDTH: tl.constexpr = BLOCK_K // SLICES
    k = block * BLOCK_K + tl.arange(0, SLICES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    scale = tl.load(norm_weight + k, mask=k < K, other=0.0).to(tl.float32)
    if ADD_ONE:
        scale += 1.0
    return (value.to(tl.float32) * scale[:, None, :]).to(value.dtype)


@triton.jit
def small_matmul_kernel(
    x, weight, bias, residual, norm_weight, out, M, N, eps, K: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SLICES: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr, ADD_ONE: tl.constexpr,
    ACT: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute [M, BLOCK_N] outputs: norm in front, bias, gate and residual behind.

    Each warp takes its own slice of the columns: a narrow product is one chain of dependent
    matrix instructions, and slices make it SLICES times shorter. The next block of weights is
    under way while the present one is multiplied, the first one before the inputs are there.
    The squares for the norm come from the diagonal of x x^T, so x is read once.
    """
    release_successor(PDL)
    NUM_BLOCKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    cols = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = cols < N
    rows = tl.arange(0, ROWS)
    acc = tl.zeros([SLICES, ROWS, BLOCK_N], tl.float32)
    acc_up = tl.zeros([SLICES, ROWS, BLOCK_N], tl.float32)
    gram = tl.zeros([SLICES, ROWS, ROWS], tl.float32)
    w = _load_slices(weight, cols, live, 0, K, SLICES, BLOCK_K, "evict_first")
    if ACT != "none":
        w_up = _load_slices(weight, N + cols, live, 0, K, SLICES, BLOCK_K, "evict_first")
    wait_for_inputs(PDL)
    for block in tl.static_range(NUM_BLOCKS):
        value = _load_slices(x, rows, rows < M, block, K, SLICES, BLOCK_K, "evict_last")
        if block + 1 < NUM_BLOCKS:
            w_next = _load_slices(weight, cols, live, block + 1, K, SLICES, BLOCK_K,
                                  "evict_first")  # fmt: skip
            if ACT != "none":
                w_up_next = _load_slices(weight, N + cols, live, block + 1, K, SLICES, BLOCK_K,
                                         "evict_first")  # fmt: skip
        if HAS_NORM:
            turned = tl.permute(value, (0, 2, 1))
            gram = tl.dot(value, turned, gram, input_precision=PRECISION)
            value = _scale_columns(value, norm_weight, block, K, SLICES, BLOCK_K, ADD_ONE)
        acc = tl.dot(value, tl.permute(w, (0, 2, 1)), acc, input_precision=PRECISION)
        if ACT != "none":
            acc_up = tl.dot(value, tl.permute(w_up, (0, 2, 1)), acc_up, input_precision=PRECISION)
        if block + 1 < NUM_BLOCKS:
            w = w_next
            if ACT != "none":
                w_up = w_up_next
    y = tl.sum(acc, axis=0)
    norm = 1.0
    if HAS_NORM:
        diagonal = tl.where(rows[:, None] == rows[None, :], tl.sum(gram, axis=0), 0.0)
        norm = tl.rsqrt(tl.sum(diagonal, axis=1) / K + eps)[:, None]
        y *= norm
    if HAS_BIAS:
        y += tl.load(bias + cols, mask=live, other=0.0).to(tl.float32)[None, :]
    if ACT != "none":
        up = tl.sum(acc_up, axis=0) * norm
        if HAS_BIAS:
            up += tl.load(bias + N + cols, mask=live, other=0.0).to(tl.float32)[None, :]
        y = gate(y, ACT) * up
    mask = (rows < M)[:, None] & live[None, :]
    place = rows[:, None] * N + cols[None, :]
    if HAS_RESIDUAL:
        y += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=mask)
