"""A lone row's queries, keys and values in FP8, rotated and written to pages as they are projected.

A launch of its own for rotation and pages takes longer than what it does: here a program has whole
pairs of a head's dims, so that nothing is left to another kernel.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.launch import (
    dependent_launch,
    next_power_of_2,
    release_successor,
    require,
    require_contiguous,
    wait_for_inputs,
)
from tokenbus.kernels.linear.block_scales import PART, load_parts, part_sums
from tokenbus.kernels.linear.fp8_shapes import check_fp8_weight
from tokenbus.kernels.page_scales import check_page_dtypes
from tokenbus.kernels.quantize import magnitude, page_number, scales_of_top

if TYPE_CHECKING:
    from torch import Tensor

# Heads whose parts are counted, over all launches at a time.
_MAX_HEADS = 4096
# Outputs of a program, and columns per step. On an H200 a step of the 8B shape took 2,581 us with
# whole rows at once, 2,660 in two steps.
_ROWS, _BLOCK_K = 4, 4096


@dataclass(frozen=True, slots=True)
class PageTarget:
    """Where T tokens go: their rotation and their slots; T is 1 for `fp8_qkv_row`.

    positions, slots: [T] int64. cos, sin: [max_len, D] float32, halves equal. k_pages, v_pages,
    k_scales, v_scales: as of `qkv_rope`. num_heads: of queries.
    """

    num_heads: int
    positions: Tensor
    slots: Tensor
    cos: Tensor
    sin: Tensor
    k_pages: Tensor
    v_pages: Tensor
    k_scales: Tensor | None
    v_scales: Tensor | None


@cache
def _arrivals(device: torch.device) -> Tensor:
    """Return the counts of programs that ended, zero between launches."""
    return torch.zeros(_MAX_HEADS, dtype=torch.int32, device=device)


@triton.jit
def _turn(a, b, cos, sin):
    """Rotate the two halves of heads."""
    return a * cos - b * sin, b * cos + a * sin


@triton.jit
def _place_of(head, slot, page_stride, HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr,
              S: tl.constexpr):  # fmt: skip
    """Return where a KV head's block begins, the token's offset in it, and its scale's place."""
    kv = (head - HQ) % HKV
    page = slot // S
    return page * page_stride + kv * (S * D), slot % S, page * (HKV * S) + kv * S + slot % S


@triton.jit
def _store_rounded(kept, head, slot, k_pages, v_pages, k_scales, v_scales, page_stride,
                   HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr,
                   S: tl.constexpr):  # fmt: skip
    """Round a whole head of keys or values, [D] from `kept` on, into its slot."""
    dims = tl.arange(0, D)
    base, offset, place = _place_of(head, slot, page_stride, HQ, HKV, D, S)
    value = tl.load(kept + dims, cache_modifier=".cg")
    scale, inverse = scales_of_top(tl.max(magnitude(value)))
    rounded = page_number(value, inverse)
    if head < HQ + HKV:
        tl.store(k_scales + place, scale)
        tl.store(k_pages + base + offset * D + dims, rounded)
    else:
        # A page has tokens of values innermost.
        tl.store(v_scales + place, scale)
        tl.store(v_pages + base + offset + dims * S, rounded)


@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def _qkv_row_kernel(
    x, weight, scales, bias, norm_weight, positions, slots, cos, sin, q_out, k_pages, v_pages,
    k_scales, v_scales, found, arrivals, page_stride, eps, K: tl.constexpr, HQ: tl.constexpr,
    HKV: tl.constexpr, D: tl.constexpr, S: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_OUT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr,
    IS_ROUNDED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute ROWS outputs of a lone row, behind a norm: dims of a head and those they turn with.

    Rounding needs a whole head of keys or values: the last of its programs to end does it. If
    BLOCK_OUT is not 0, scales are those of blocks of so many outputs, which D divides, and 128
    columns.
    """
    release_successor(PDL)
    HALF: tl.constexpr = D // 2
    PAIRS: tl.constexpr = ROWS // 2
    PER_HEAD: tl.constexpr = D // ROWS
    head = (tl.program_id(0) // PER_HEAD + HQ) % (HQ + 2 * HKV)
    first = tl.program_id(0) % PER_HEAD * PAIRS
    offs_r = tl.arange(0, ROWS)
    outputs = head * D + offs_r // PAIRS * HALF + first + offs_r % PAIRS
    weight += outputs.to(tl.int64)[:, None] * K
    if BLOCK_OUT == 0:
        by_out = tl.load(scales + outputs)
    if HAS_BIAS:
        shift = tl.load(bias + outputs).to(tl.float32)
    BLOCKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    acc = tl.zeros([ROWS, BLOCK_K if BLOCK_OUT == 0 else BLOCK_K // PART], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for block in tl.static_range(BLOCKS):
        k = block * BLOCK_K + tl.arange(0, BLOCK_K)
        # A block that fits needs no mask; with one the loads would be checked element by element.
        in_k = tl.full([BLOCK_K], True, tl.int1) if (block + 1) * BLOCK_K <= K else k < K
        # Weights do not depend on the previous kernel: they are asked for before it ended.
        w = tl.load(weight + k[None, :], mask=in_k[None, :], other=0.0,
                    eviction_policy="evict_first")  # fmt: skip
        if BLOCK_OUT > 0:
            by_part = load_parts(scales, head * D // BLOCK_OUT, block, K, BLOCK_K)
        if HAS_NORM:
            scale = tl.load(norm_weight + k, mask=in_k, other=0.0).to(tl.float32)
        if block == 0:
            wait_for_inputs(PDL)
            position = tl.load(positions)
            slot = tl.load(slots)
        value = tl.load(x + k, mask=in_k, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += value * value
            value *= scale
        if BLOCK_OUT == 0:
            acc += w.to(tl.float32) * value[None, :]
        else:
            acc += part_sums(w, value[None, :]) * by_part[None, :]
    y = tl.sum(acc, axis=1)
    if BLOCK_OUT == 0:
        y *= by_out
    if HAS_NORM:
        y *= tl.rsqrt(tl.sum(squares) / K + eps)
    if HAS_BIAS:
        y += shift
    a, b = tl.split(tl.trans(tl.reshape(y, (2, PAIRS))))
    half = first + tl.arange(0, PAIRS)
    if head < HQ + HKV:
        at = position * D + HALF + half
        a, b = _turn(a, b, tl.load(cos + at), tl.load(sin + at))
    if head < HQ:
        to = q_out + head * D + half
        tl.store(to, a.to(q_out.dtype.element_ty))
        tl.store(to + HALF, b.to(q_out.dtype.element_ty))
    elif IS_ROUNDED:
        kept = found + (head - HQ) * D
        tl.store(kept + half, a, cache_modifier=".cg")
        tl.store(kept + HALF + half, b, cache_modifier=".cg")
        tl.debug_barrier()
        count = arrivals + head - HQ
        if tl.atomic_add(count, 1, sem="acq_rel", scope="gpu") == PER_HEAD - 1:
            tl.debug_barrier()
            tl.store(count, 0)
            _store_rounded(kept, head, slot, k_pages, v_pages, k_scales, v_scales, page_stride, HQ,
                           HKV, D, S)  # fmt: skip
    else:
        base, offset, _ = _place_of(head, slot, page_stride, HQ, HKV, D, S)
        to = k_pages + base + offset * D + half
        if head >= HQ + HKV:
            to = v_pages + base + offset * D + half
        tl.store(to, a.to(k_pages.dtype.element_ty))
        tl.store(to + HALF, b.to(k_pages.dtype.element_ty))


def fits_qkv_row(head_dim: int, rotary_dim: int, block_outputs: int = 0) -> bool:
    """Say whether `fp8_qkv_row` takes a shape: heads rotated whole, each within a block."""
    is_whole = _ROWS <= head_dim == rotary_dim == next_power_of_2(head_dim)
    return is_whole and block_outputs % head_dim == 0


def _check(
    x: Tensor, values: Tensor, scales: Tensor, block_outputs: int, target: PageTarget
) -> None:
    """Refuse shapes that the kernel would read or write wrongly."""
    num_rows, width = x.shape
    _, num_kv_heads, page_size, head_dim = target.k_pages.shape
    outputs = (target.num_heads + 2 * num_kv_heads) * head_dim
    require(num_rows == 1, f"{num_rows} rows, this takes one")
    require(values.shape == (outputs, width), f"weight {tuple(values.shape)}, heads of {outputs}")
    rotary_dim = target.cos.shape[1]
    parts = f"heads of {head_dim}, rotated {rotary_dim}, blocks of {block_outputs}"
    require(fits_qkv_row(head_dim, rotary_dim, block_outputs), parts)
    check_fp8_weight(values, scales, block_outputs)
    require(next_power_of_2(page_size) == page_size, f"page size {page_size}")
    require(target.positions.shape == target.slots.shape == (1,), "one row has one position")
    require_contiguous(
        x=x, weight=values, cos=target.cos, sin=target.sin, positions=target.positions,
        slots=target.slots, k_pages=target.k_pages, v_pages=target.v_pages,
    )  # fmt: skip


def fp8_qkv_row(
    x: Tensor,
    values: Tensor,
    scales: Tensor,
    target: PageTarget,
    *,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    block_outputs: int = 0,
    block_k: int = _BLOCK_K,
) -> Tensor:
    """Project one row, rotate queries and keys, write keys and values into their slots.

    Args:
        x: [1, K], as it is, or rms_norm of it with `norm_weight`, [K].
        values: [(Hq + 2 Hkv) * D, K] e4m3; scales: of its outputs, float32; bias: of its outputs.
        block_outputs: if not 0, scales are of blocks of so many outputs and 128 inputs.
        block_k: columns per step.
    Returns: q, [1, Hq, D], dtype of x; sums and all behind them are fp32.
    Raises: KernelInputError on shapes that do not fit. Twin: `fp8_matvec`, then `qkv_rope`.
    """
    _check(x, values, scales, block_outputs, target)
    check_page_dtypes(x.dtype, target.k_pages, target.v_pages, target.k_scales, target.v_scales)
    require_contiguous(norm_weight=norm_weight)
    width = x.shape[1]
    _, num_kv_heads, page_size, head_dim = target.k_pages.shape
    num_all = target.num_heads + 2 * num_kv_heads
    q_out = torch.empty(1, target.num_heads, head_dim, dtype=x.dtype, device=x.device)
    found = None
    if target.k_scales is not None:
        size = 2 * num_kv_heads * head_dim
        found = torch.empty(size, dtype=torch.float32, device=x.device)
    _qkv_row_kernel[(num_all * (head_dim // _ROWS),)](
        x,
        values,
        scales,
        bias,
        norm_weight,
        target.positions,
        target.slots,
        target.cos,
        target.sin,
        q_out,
        target.k_pages,
        target.v_pages,
        target.k_scales,
        target.v_scales,
        found,
        _arrivals(x.device),
        target.k_pages.stride(0),
        eps,
        K=width,
        HQ=target.num_heads,
        HKV=num_kv_heads,
        D=head_dim,
        S=page_size,
        ROWS=_ROWS,
        BLOCK_K=min(block_k, next_power_of_2(width)),
        BLOCK_OUT=block_outputs,
        HAS_BIAS=bias is not None,
        HAS_NORM=norm_weight is not None,
        IS_ROUNDED=target.k_scales is not None,
        num_warps=4,
        **dependent_launch(x.device),
    )
    return q_out
