"""Small matrix products: two to sixteen rows, one read of the weights for all of them."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from tokenbus.kernels.activation import gate
from tokenbus.kernels.exchange import receive_sum, send
from tokenbus.kernels.launch import release_successor, wait_for_inputs


@triton.jit
def _columns(start, SLICES: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return one block's column numbers: [1, BLOCK_K], or [SLICES, BLOCK_K // SLICES]."""
    WIDTH: tl.constexpr = BLOCK_K // SLICES
    return start + tl.arange(0, SLICES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def _load_block(base, rows, live, start, K: tl.constexpr, SLICES: tl.constexpr,
                BLOCK_K: tl.constexpr, EVICT: tl.constexpr):  # fmt: skip
    """Load one block of columns: [rows, BLOCK_K], or [SLICES, rows, BLOCK_K // SLICES]."""
    k = _columns(start, SLICES, BLOCK_K)
    if SLICES == 1:
        mask = live[:, None] & (k < K)
        place = rows[:, None] * K + k
    else:
        mask = live[None, :, None] & (k < K)[:, None, :]
        place = rows[None, :, None] * K + k[:, None, :]
    return tl.load(base + place, mask=mask, other=0.0, eviction_policy=EVICT)


@triton.jit
def _multiply(a, b, acc, SLICES: tl.constexpr, PRECISION: tl.constexpr):
    """Add a b^T to acc, slice by slice."""
    turned = tl.trans(b) if SLICES == 1 else tl.permute(b, (0, 2, 1))
    return tl.dot(a, turned, acc, input_precision=PRECISION)


@triton.jit
def _scale_columns(value, norm_weight, start, K: tl.constexpr, SLICES: tl.constexpr,
                   BLOCK_K: tl.constexpr, ADD_ONE: tl.constexpr):  # fmt: skip
    """Multiply the columns of one block by the norm's weight."""
    k = _columns(start, SLICES, BLOCK_K)
    scale = tl.load(norm_weight + k, mask=k < K, other=0.0).to(tl.float32)
    if ADD_ONE:
        scale += 1.0
    if SLICES > 1:
        scale = scale[:, None, :]
    return (value.to(tl.float32) * scale).to(value.dtype)


@triton.jit
def _fetch_early(weight, rows, end, K: tl.constexpr, LINES: tl.constexpr):
    """Ask for the rows before `end` of a program's weights before its inputs are there.

    128 bytes a line.
    """
    k = tl.minimum(tl.arange(0, LINES) * 64, K - 1)
    place = weight + tl.minimum(rows, end - 1)[:, None] * K + k[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [place.to(tl.int64, bitcast=True)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit(do_not_specialize=["M", "side"])
def small_matmul_kernel(
    x, weight, bias, boxes, residual, norm_weight, out, side, M, N, eps, K: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SLICES: tl.constexpr,
    STAGES: tl.constexpr, EARLY_LINES: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr, ADD_ONE: tl.constexpr, ACT: tl.constexpr,
    PRECISION: tl.constexpr, RANK: tl.constexpr, SIZE: tl.constexpr, PLACE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Compute [M, WIDTH] outputs: norm in front, bias, gate, sum and residual behind.

    A tile of BLOCK_N outputs is filled up to WIDTH, so that any number of programs can share out
    the outputs evenly; what is not filled is not read.

    With slices each warp takes its own columns: a narrow product is one chain of dependent
    matrix instructions, and slices make it shorter. The squares for the norm come from the
    diagonal of x x^T, a few matrix instructions, so x is read once.
    """
    release_successor(PDL)
    first = tl.program_id(0).to(tl.int64) * WIDTH
    cols = first + tl.arange(0, BLOCK_N)
    end = tl.minimum(first + WIDTH, N)
    live = cols < end
    rows = tl.arange(0, ROWS)
    some = rows < M
    acc = tl.zeros([ROWS, BLOCK_N] if SLICES == 1 else [SLICES, ROWS, BLOCK_N], tl.float32)
    acc_up = tl.zeros_like(acc)
    gram = tl.zeros([ROWS, ROWS] if SLICES == 1 else [SLICES, ROWS, ROWS], tl.float32)
    if EARLY_LINES > 0:
        _fetch_early(weight, cols, end, K, EARLY_LINES)
        if ACT != "none":
            _fetch_early(weight + N * K, cols, end, K, EARLY_LINES)
    wait_for_inputs(PDL)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        w = _load_block(weight, cols, live, start, K, SLICES, BLOCK_K, "evict_first")
        value = _load_block(x, rows, some, start, K, SLICES, BLOCK_K, "evict_last")
        if HAS_NORM:
            gram = _multiply(value, value, gram, SLICES, PRECISION)
            value = _scale_columns(value, norm_weight, start, K, SLICES, BLOCK_K, ADD_ONE)
        acc = _multiply(value, w, acc, SLICES, PRECISION)
        if ACT != "none":
            w_up = _load_block(weight, N + cols, live, start, K, SLICES, BLOCK_K, "evict_first")
            acc_up = _multiply(value, w_up, acc_up, SLICES, PRECISION)
    if SLICES > 1:
        acc, acc_up, gram = tl.sum(acc, axis=0), tl.sum(acc_up, axis=0), tl.sum(gram, axis=0)
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
    mask = some[:, None] & live[None, :]
    place = rows[:, None] * N + cols[None, :]
    if SIZE > 1:
        send(acc, boxes, place, mask, side, RANK, SIZE, PLACE)
        acc = receive_sum(acc, boxes, place, mask, side, RANK, SIZE, PLACE)
    if HAS_RESIDUAL:
        acc += tl.load(residual + place, mask=mask, other=0.0)
        tl.store(residual + place, acc, mask=mask)
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=mask)
