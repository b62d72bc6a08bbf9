"""Two to sixteen rows times a weight matrix: one read of the weights for all rows."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from tokenbus.kernels.activation import gate
from tokenbus.kernels.launch import release_successor, wait_for_inputs


@triton.jit
def _load_rows(x, M, k0, in_k, ROWS: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Load [ROWS, BLOCK_K] of x; rows past M are zero and not read."""
    rows = tl.arange(0, ROWS)
    mask = (rows < M)[:, None] & in_k[None, :]
    return tl.load(x + rows[:, None] * K + (k0 + tl.arange(0, BLOCK_K))[None, :],
                   mask=mask, other=0.0)  # fmt: skip


@triton.jit
def small_matmul_kernel(
    x, weight, bias, residual, norm_weight, out, M, N, eps, K: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr, ADD_ONE: tl.constexpr,
    ACT: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute [M, BLOCK_N] outputs: norm in front, bias, gate and residual behind.

    The squares for the norm come from the diagonal of x x^T, a few matrix instructions, so that
    no second pass over x is needed.
    """
    release_successor(PDL)
    cols = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = cols < N
    rows = tl.arange(0, ROWS)
    offs = tl.arange(0, BLOCK_K)
    acc = tl.zeros([ROWS, BLOCK_N], tl.float32)
    acc_up = tl.zeros([ROWS, BLOCK_N], tl.float32)
    gram = tl.zeros([ROWS, ROWS], tl.float32)
    wait_for_inputs(PDL)
    for k0 in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        k = k0 + offs
        in_k = k < K
        mask = live[:, None] & in_k[None, :]
        place = weight + cols[:, None] * K + k[None, :]
        w = tl.load(place, mask=mask, other=0.0, eviction_policy="evict_first")
        value = _load_rows(x, M, k0, in_k, ROWS, K, BLOCK_K)
        if HAS_NORM:
            gram = tl.dot(value, tl.trans(value), gram, input_precision=PRECISION)
            scale = tl.load(norm_weight + k, mask=in_k, other=0.0).to(tl.float32)
            if ADD_ONE:
                scale += 1.0
            value = (value.to(tl.float32) * scale[None, :]).to(w.dtype)
        acc = tl.dot(value, tl.trans(w), acc, input_precision=PRECISION)
        if ACT != "none":
            w_up = tl.load(place + N * K, mask=mask, other=0.0, eviction_policy="evict_first")
            acc_up = tl.dot(value, tl.trans(w_up), acc_up, input_precision=PRECISION)
    if HAS_NORM:
        diagonal = tl.where(rows[:, None] == rows[None, :], gram, 0.0)
        norm = tl.rsqrt(tl.sum(diagonal, axis=1) / K + eps)[:, None]
        acc *= norm
        acc_up *= norm
    if HAS_BIAS:
        acc += tl.load(bias + cols, mask=live, other=0.0).to(tl.float32)[None, :]
    if ACT != "none":
        if HAS_BIAS:
            acc_up += tl.load(bias + N + cols, mask=live, other=0.0).to(tl.float32)[None, :]
        acc = gate(acc, ACT) * acc_up
    mask = (rows < M)[:, None] & live[None, :]
    place = rows[:, None] * N + cols[None, :]
    if HAS_RESIDUAL:
        acc += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=mask)
