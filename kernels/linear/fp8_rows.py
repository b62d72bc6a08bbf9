"""FP8 matrix products of few rows: the weights are the tall operand, read once for all rows."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from tokenbus.kernels.activation import gate
from tokenbus.kernels.launch import release_successor, wait_for_inputs
from tokenbus.kernels.quantize import scale_of


@dataclass(frozen=True, slots=True)
class RowsTuning:
    """How one shape is laid out: outputs and columns per step of a program.

    stages: steps in flight. splits: programs that share the columns of one tile; the last of them
    to end adds up what all found. early: whether weights are fetched into the L2 cache while the
    previous kernel still runs, which pays as long as they fit in there.
    """

    block_n: int
    block_k: int
    num_warps: int
    stages: int
    splits: int = 1
    early: bool = False


@triton.jit
def _fetch_early(weight, first, end, begin, BLOCK_N: tl.constexpr, K: tl.constexpr,
                 SPAN: tl.constexpr, LINES: tl.constexpr):  # fmt: skip
    """Ask for a program's weights before its inputs are there, 128 bytes a line."""
    rows = tl.minimum(first + tl.arange(0, BLOCK_N), end - 1).to(tl.int64)
    k = begin + tl.minimum(tl.arange(0, LINES) * 128, SPAN - 1)
    place = weight + rows[:, None] * K + tl.minimum(k, K - 1)[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [place.to(tl.int64, bitcast=True)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _rounded(value):
    """Round a step of rows [ROWS, BLOCK_K] to e4m3 with a scale per row and step."""
    scale = scale_of(tl.max(tl.abs(value), axis=1))
    return (value / scale[:, None]).to(tl.float8e4nv), scale


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


@triton.jit(do_not_specialize=["M"])
def fp8_rows_kernel(
    x, x_scales, weight, bytes_of_weight, scales, bias, residual, norm_weight, out, parts, arrivals,
    M, N, eps, K: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr, STAGES: tl.constexpr, EARLY_LINES: tl.constexpr, ROUNDED: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr,
    ACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute [M, BLOCK_N] outputs: norm in front, bias, gate and residual behind.

    weight is a tensor descriptor, and so is x if it is ROUNDED to e4m3, with a scale per row in
    x_scales; else x holds rows of any dtype, which are rounded here, with a scale per row and step.
    With splits every program has the columns of one part; SPLITS == 1 whenever ACT or HAS_NORM.
    """
    release_successor(PDL)
    tile = tl.program_id(0)
    col = tile * BLOCK_N
    SPAN: tl.constexpr = (K + SPLITS * BLOCK_K - 1) // (SPLITS * BLOCK_K) * BLOCK_K
    begin = tl.program_id(1) * SPAN
    rows = tl.arange(0, ROWS)
    some = rows < M
    acc = tl.zeros([BLOCK_N, ROWS], tl.float32)
    acc_up = tl.zeros([BLOCK_N, ROWS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    if EARLY_LINES > 0:
        _fetch_early(bytes_of_weight, col, N, begin, BLOCK_N, K, SPAN, EARLY_LINES)
    wait_for_inputs(PDL)
    for offset in tl.range(0, SPAN, BLOCK_K, num_stages=STAGES):
        start = begin + offset
        w = weight.load([col, start])
        if ROUNDED:
            value = x.load([0, start])
            acc = tl.dot(w, value.T, acc)
            if ACT != "none":
                acc_up = tl.dot(weight.load([N + col, start]), value.T, acc_up)
        else:
            k = start + tl.arange(0, BLOCK_K)
            there = some[:, None] & (k < K)[None, :]
            wide = tl.load(x + rows[:, None] * K + k[None, :], mask=there, other=0.0)
            wide = wide.to(tl.float32)
            if HAS_NORM:
                squares += tl.sum(wide * wide, axis=1)
                wide *= tl.load(norm_weight + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
            value, scale = _rounded(wide)
            acc += tl.dot(w, value.T) * scale[None, :]
            if ACT != "none":
                acc_up += tl.dot(weight.load([N + col, start]), value.T) * scale[None, :]
    is_last = True
    if SPLITS > 1:
        offs = tl.arange(0, ROWS)[None, :] * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
        acc, is_last = _sum_parts(acc, parts, tile, arrivals, SPLITS, ROWS * BLOCK_N, offs)
    if is_last:
        cols = col + tl.arange(0, BLOCK_N)
        live = cols < N
        by_row = tl.full([ROWS], 1.0, tl.float32)
        if ROUNDED:
            by_row = tl.load(x_scales + rows, mask=some, other=0.0)
        if HAS_NORM:
            by_row *= tl.rsqrt(squares / K + eps)
        acc *= tl.load(scales + cols, mask=live, other=0.0)[:, None] * by_row[None, :]
        if HAS_BIAS:
            acc += tl.load(bias + cols, mask=live, other=0.0).to(tl.float32)[:, None]
        if ACT != "none":
            acc_up *= tl.load(scales + N + cols, mask=live, other=0.0)[:, None] * by_row[None, :]
            if HAS_BIAS:
                acc_up += tl.load(bias + N + cols, mask=live, other=0.0).to(tl.float32)[:, None]
            acc = gate(acc, ACT) * acc_up
        mask = live[:, None] & some[None, :]
        place = rows[None, :].to(tl.int64) * N + cols[:, None]
        if HAS_RESIDUAL:
            acc += tl.load(residual + place, mask=mask, other=0.0)
            tl.store(residual + place, acc, mask=mask)
        tl.store(out + place, acc.to(out.dtype.element_ty), mask=mask)
