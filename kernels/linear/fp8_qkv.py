"""The projection to queries, keys and values in FP8, rotated and written to pages as it is made.

A decode step's own launch for rotation and pages takes longer than what it does: here a program has
whole pairs of a head's dims, or whole heads, so that nothing is left to another kernel.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    next_power_of_2,
    release_successor,
    require,
    require_contiguous,
    wait_for_inputs,
)
from tokenbus.kernels.linear.fp8_rows import sum_parts
from tokenbus.kernels.page_scales import check_page_dtypes
from tokenbus.kernels.quantize import magnitude, page_number, scales_of_top

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.quantize import QuantizedRows

# Rows of one launch, and of a tile.
MAX_ROWS, _MOST_HEIGHT = 256, 128
# Heads whose parts are counted, over all launches at a time.
_MAX_HEADS = 4096


@dataclass(frozen=True, slots=True)
class PageTarget:
    """Where one token of each row goes: its rotation and its slot.

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


@dataclass(frozen=True, slots=True)
class QkvTuning:
    """How a launch of several rows is laid out: columns per step, steps in flight, and splits.

    splits: programs that share the columns of one head.
    """

    block_k: int
    num_warps: int
    stages: int
    splits: int = 1


@cache
def _arrivals(device: torch.device) -> Tensor:
    """Return the counts of programs that ended, zero between launches."""
    return torch.zeros(_MAX_HEADS, dtype=torch.int32, device=device)


def choose_qkv_tuning(num_rows: int) -> QkvTuning:
    """Pick the layout for several rows."""
    if num_rows <= 128:
        return QkvTuning(128, 4, 6, splits=2)
    return QkvTuning(128, 4, 6)


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
def _store_halves(a, b, half, head, slot, live, k_pages, v_pages, k_scales, v_scales, page_stride,
                  HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, S: tl.constexpr,
                  IS_ROUNDED: tl.constexpr):  # fmt: skip
    """Store both halves of a head of keys or values, [D / 2, R], into the slots of R tokens."""
    HALF: tl.constexpr = D // 2
    base, offset, place = _place_of(head, slot, page_stride, HQ, HKV, D, S)
    is_key = head < HQ + HKV
    mask = live[None, :] & (half >= 0)[:, None]
    by_token = (base + offset * D)[None, :] + half[:, None]
    if IS_ROUNDED:
        tops = tl.maximum(tl.max(magnitude(a), axis=0), tl.max(magnitude(b), axis=0))
        scale, inverse = scales_of_top(tops)
        first, second = page_number(a, inverse[None, :]), page_number(b, inverse[None, :])
        # A page has tokens of values innermost.
        by_dim = (base + offset)[None, :] + half[:, None] * S
        if is_key:
            tl.store(k_scales + place, scale, mask=live)
            tl.store(k_pages + by_token, first, mask=mask)
            tl.store(k_pages + by_token + HALF, second, mask=mask)
        else:
            tl.store(v_scales + place, scale, mask=live)
            tl.store(v_pages + by_dim, first, mask=mask)
            tl.store(v_pages + by_dim + HALF * S, second, mask=mask)
    else:
        first, second = a.to(k_pages.dtype.element_ty), b.to(k_pages.dtype.element_ty)
        to = k_pages + by_token
        if not is_key:
            to = v_pages + by_token
        tl.store(to, first, mask=mask)
        tl.store(to + HALF, second, mask=mask)


@triton.jit(do_not_specialize=["M"], do_not_specialize_on_alignment=["positions", "slots"])
def _qkv_rows_kernel(
    x, x_scales, weight, scales, bias, positions, slots, cos, sin, q_out, k_pages, v_pages,
    k_scales, v_scales, parts, arrivals, M, page_stride, K: tl.constexpr, ROWS: tl.constexpr,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, S: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr, STAGES: tl.constexpr, HAS_BIAS: tl.constexpr, IS_ROUNDED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Compute a head of some rows, [D, ROWS]; x and weight are tensor descriptors.

    Keys and values come first: what is written byte by byte is on its way while others compute.
    """
    release_successor(PDL)
    HALF: tl.constexpr = D // 2
    HEADS: tl.constexpr = HQ + 2 * HKV
    tile = tl.program_id(0)
    head = (tile % HEADS + HQ) % HEADS
    col = head * D
    first = tile // HEADS * ROWS
    SPAN: tl.constexpr = (K + SPLITS * BLOCK_K - 1) // (SPLITS * BLOCK_K) * BLOCK_K
    begin = tl.program_id(1) * SPAN
    dims = tl.arange(0, D)
    half = tl.arange(0, HALF)
    rows = first + tl.arange(0, ROWS)
    live = rows < M
    acc = tl.zeros([D, ROWS], tl.float32)
    by_out = tl.load(scales + col + dims)[:, None]
    if HAS_BIAS:
        shift = tl.load(bias + col + dims).to(tl.float32)[:, None]
    wait_for_inputs(PDL)
    by_row = tl.load(x_scales + rows, mask=live, other=0.0)[None, :]
    position = tl.load(positions + rows, mask=live, other=0)
    slot = tl.load(slots + rows, mask=live, other=0)
    for offset in tl.range(0, SPAN, BLOCK_K, num_stages=STAGES):
        value = x.load([first, begin + offset])
        acc = tl.dot(weight.load([col, begin + offset]), value.T, acc)
    is_last = True
    if SPLITS > 1:
        offs = tl.arange(0, ROWS)[None, :] * D + dims[:, None]
        acc, is_last = sum_parts(acc, parts, tile, arrivals, SPLITS, ROWS * D, offs)
    if is_last:
        acc *= by_out * by_row
        if HAS_BIAS:
            acc += shift
        # A thread has dims of both halves, those that turn with one another.
        a, b = tl.split(tl.permute(tl.reshape(acc, (2, HALF, ROWS)), (1, 2, 0)))
        if head < HQ + HKV:
            at = position[None, :] * D + (HALF + half)[:, None]
            a, b = _turn(a, b, tl.load(cos + at), tl.load(sin + at))
        if head < HQ:
            to = q_out + rows.to(tl.int64)[None, :] * (HQ * D) + (head * D + half)[:, None]
            mask = live[None, :] & (half >= 0)[:, None]
            tl.store(to, a.to(q_out.dtype.element_ty), mask=mask)
            tl.store(to + HALF, b.to(q_out.dtype.element_ty), mask=mask)
        else:
            _store_halves(a, b, half, head, slot, live, k_pages, v_pages, k_scales, v_scales,
                          page_stride, HQ, HKV, D, S, IS_ROUNDED)  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def _qkv_row_kernel(
    x, weight, scales, bias, norm_weight, positions, slots, cos, sin, q_out, k_pages, v_pages,
    k_scales, v_scales, found, arrivals, page_stride, eps, K: tl.constexpr, HQ: tl.constexpr,
    HKV: tl.constexpr, D: tl.constexpr, S: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr,
    IS_ROUNDED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute ROWS outputs of a lone row, behind a norm: dims of a head and those they turn with.

    Rounding needs a whole head of keys or values: the last of its programs to end does it.
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
    by_out = tl.load(scales + outputs)
    if HAS_BIAS:
        shift = tl.load(bias + outputs).to(tl.float32)
    BLOCKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    acc = tl.zeros([ROWS, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for block in tl.static_range(BLOCKS):
        k = block * BLOCK_K + tl.arange(0, BLOCK_K)
        # A block that fits needs no mask; with one the loads would be checked element by element.
        in_k = tl.full([BLOCK_K], True, tl.int1) if (block + 1) * BLOCK_K <= K else k < K
        # Weights do not depend on the previous kernel: they are asked for before it ended.
        w = tl.load(weight + k[None, :], mask=in_k[None, :], other=0.0,
                    eviction_policy="evict_first")  # fmt: skip
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
        acc += w.to(tl.float32) * value[None, :]
    y = tl.sum(acc, axis=1) * by_out
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
            dims = tl.arange(0, HALF)
            low = tl.load(kept + dims, cache_modifier=".cg")[:, None]
            high = tl.load(kept + HALF + dims, cache_modifier=".cg")[:, None]
            one = tl.arange(0, 1)
            _store_halves(low, high, dims, head, slot + one, one == 0, k_pages, v_pages, k_scales,
                          v_scales, page_stride, HQ, HKV, D, S, True)  # fmt: skip
    else:
        base, offset, _ = _place_of(head, slot, page_stride, HQ, HKV, D, S)
        to = k_pages + base + offset * D + half
        if head >= HQ + HKV:
            to = v_pages + base + offset * D + half
        tl.store(to, a.to(k_pages.dtype.element_ty))
        tl.store(to + HALF, b.to(k_pages.dtype.element_ty))


def fits_qkv(num_rows: int, head_dim: int, rotary_dim: int) -> bool:
    """Say whether `fp8_qkv` takes a shape: whole heads are rotated, and fill a tile."""
    is_whole = rotary_dim == head_dim == next_power_of_2(head_dim)
    return 1 <= num_rows <= MAX_ROWS and is_whole and 64 <= head_dim <= 128


def _check(values: Tensor, width: int, target: PageTarget, num_rows: int) -> None:
    """Refuse shapes that the kernels would read or write wrongly."""
    _, num_kv_heads, page_size, head_dim = target.k_pages.shape
    outputs = (target.num_heads + 2 * num_kv_heads) * head_dim
    require(values.shape == (outputs, width), f"weight {tuple(values.shape)}, heads of {outputs}")
    require(fits_qkv(num_rows, head_dim, target.cos.shape[1]), f"{num_rows} rows of {head_dim}")
    require(next_power_of_2(page_size) == page_size, f"page size {page_size}")
    for indices in (target.positions, target.slots):
        require(indices.shape == (num_rows,), f"{num_rows} rows, indices {tuple(indices.shape)}")
    require_contiguous(
        weight=values, cos=target.cos, sin=target.sin, positions=target.positions,
        slots=target.slots, k_pages=target.k_pages, v_pages=target.v_pages,
    )  # fmt: skip


def fp8_qkv(
    x: QuantizedRows,
    values: Tensor,
    scales: Tensor,
    target: PageTarget,
    *,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
    tuning: QkvTuning | None = None,
) -> Tensor:
    """Project rows of e4m3, rotate queries and keys, write keys and values into their slots.

    Args:
        x: [T, K] with a scale per row, 1 <= T <= 256. values: [(Hq + 2 Hkv) * D, K] e4m3, scales:
            of its outputs, float32. bias: of its outputs.
    Returns: q, [T, Hq, D] of `dtype`; sums and all behind them are fp32.
    Raises: KernelInputError on shapes that do not fit. Twin: `fp8_linear`, then `qkv_rope`.
    """
    num_rows, width = x.values.shape
    _check(values, width, target, num_rows)
    check_page_dtypes(dtype, target.k_pages, target.v_pages, target.k_scales, target.v_scales)
    _, num_kv_heads, page_size, head_dim = target.k_pages.shape
    height = min(_MOST_HEIGHT, next_power_of_2(max(num_rows, 16)))
    num_tiles = (target.num_heads + 2 * num_kv_heads) * ceil_div(num_rows, height)
    tuning = tuning or choose_qkv_tuning(num_rows)
    parts = None
    if tuning.splits > 1:
        size = (num_tiles, tuning.splits, height * head_dim)
        parts = torch.empty(size, dtype=torch.float32, device=values.device)
    q_out = torch.empty(num_rows, target.num_heads, head_dim, dtype=dtype, device=values.device)
    rows = x.values if x.room is None else x.room
    _qkv_rows_kernel[(num_tiles, tuning.splits)](
        TensorDescriptor.from_tensor(rows, [height, tuning.block_k]),
        x.scales,
        TensorDescriptor.from_tensor(values, [head_dim, tuning.block_k]),
        scales,
        bias,
        target.positions,
        target.slots,
        target.cos,
        target.sin,
        q_out,
        target.k_pages,
        target.v_pages,
        target.k_scales,
        target.v_scales,
        parts,
        _arrivals(values.device),
        num_rows,
        target.k_pages.stride(0),
        K=width,
        ROWS=height,
        HQ=target.num_heads,
        HKV=num_kv_heads,
        D=head_dim,
        S=page_size,
        BLOCK_K=tuning.block_k,
        SPLITS=tuning.splits,
        STAGES=tuning.stages,
        HAS_BIAS=bias is not None,
        IS_ROUNDED=target.k_scales is not None,
        num_warps=tuning.num_warps,
        num_stages=tuning.stages,
        **dependent_launch(values.device),
    )
    return q_out


def fp8_qkv_row(
    x: Tensor,
    values: Tensor,
    scales: Tensor,
    target: PageTarget,
    *,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    block_rows: int = 4,
    block_k: int = 2048,
) -> Tensor:
    """Do as `fp8_qkv` for one row, [1, K], as it is, or rms_norm of it with `norm_weight`, [K].

    Args: block_rows, block_k: outputs of a program, and columns per step.
    Twin: `fp8_matvec`, then `qkv_rope`.
    """
    num_rows, width = x.shape
    require(num_rows == 1, f"{num_rows} rows, this takes one")
    _check(values, width, target, num_rows)
    check_page_dtypes(x.dtype, target.k_pages, target.v_pages, target.k_scales, target.v_scales)
    require_contiguous(x=x, norm_weight=norm_weight)
    _, num_kv_heads, page_size, head_dim = target.k_pages.shape
    num_all = target.num_heads + 2 * num_kv_heads
    q_out = torch.empty(1, target.num_heads, head_dim, dtype=x.dtype, device=x.device)
    found = None
    if target.k_scales is not None:
        size = 2 * num_kv_heads * head_dim
        found = torch.empty(size, dtype=torch.float32, device=x.device)
    _qkv_row_kernel[(num_all * (head_dim // block_rows),)](
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
        ROWS=block_rows,
        BLOCK_K=min(block_k, next_power_of_2(width)),
        HAS_BIAS=bias is not None,
        HAS_NORM=norm_weight is not None,
        IS_ROUNDED=target.k_scales is not None,
        num_warps=4,
        **dependent_launch(x.device),
    )
    return q_out
