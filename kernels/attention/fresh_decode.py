"""Decode attention of few rows from their projections: rotation, pages and attention in one launch.

Few rows wait more than they read: for the launch before, for page ids, for keys. So an item's last
tile is on its way before the inputs are there. The current token, which is among them, takes its
place in that tile, and is written to its page meanwhile.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.attention.decode_items import finish_item, load_item
from tokenbus.kernels.attention.decode_tile import load_tile
from tokenbus.kernels.attention.fresh_tile import attend_plain_fresh, attend_rounded_fresh
from tokenbus.kernels.attention.fresh_token import load_norm, load_turn, turned
from tokenbus.kernels.attention.rounded_tile import load_rounded
from tokenbus.kernels.launch import (
    dependent_launch,
    next_power_of_2,
    num_processors,
    release_successor,
    require,
    require_contiguous,
    wait_for_inputs,
)
from tokenbus.kernels.page_scales import check_page_dtypes
from tokenbus.kernels.quantize import magnitude, page_number, scales_of_top

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.attention.work_list import DecodeWork

# Bytes of a K tile: its numbers and those of V are in registers.
_TILE_BYTES = 64 * 128 * 2


@dataclass(frozen=True, slots=True)
class FreshTuning:
    """How the kernel is laid out: all of its programs have to find a place at once.

    max_registers: of a thread, None for as many as the kernel likes.
    """

    num_warps: int
    programs_per_processor: int
    max_registers: int | None = None


_TUNING = FreshTuning(4, 2)


@dataclass(frozen=True, slots=True)
class FreshTokens:
    """What turns projections of N tokens into queries, and into keys and values of pages.

    positions, slots: [N] int64. cos, sin: [max_len, R] float32, halves equal, or None.
    q_norm, k_norm: [D], norms of heads, or None.
    """

    positions: Tensor
    slots: Tensor
    cos: Tensor | None
    sin: Tensor | None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    eps: float = 1e-6

    @property
    def rotary_dim(self) -> int:
        """Dims of a head that are rotated."""
        return 0 if self.cos is None else self.cos.shape[1]


@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def _fresh_decode_kernel(
    qkv, positions, slots, cos, sin, q_norm, k_norm, k_pages, v_pages, k_scales, v_scales, out,
    block_table, context_lens, items, num_items, part_o, part_lse, arrivals, eps,
    table_stride, page_stride, part_stride, scale, softcap, window, HQ: tl.constexpr,
    HKV: tl.constexpr, D: tl.constexpr, S: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, ROT: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr, LISTED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Work through every num_programs-th item of the list; see `_decode_kernel` for LISTED.

    All that was in the pages before this pass is visible before the wait if a launch of the pass
    has looked at the list: it let go behind its own wait.
    """
    GROUP: tl.constexpr = HQ // HKV
    IS_ROUNDED: tl.constexpr = k_scales is not None
    if not LISTED:
        wait_for_inputs(PDL)
        release_successor(PDL)
    dims = tl.arange(0, BLOCK_D)
    in_dims = dims < D
    # Products in FP8 take each query twice.
    group = tl.arange(0, 2 * ROWS) // 2 if IS_ROUNDED else tl.arange(0, ROWS)
    one = tl.zeros([1], tl.int32)
    total = tl.load(num_items) * HKV
    for place in tl.range(tl.program_id(0), total, tl.num_programs(0), num_stages=1):
        row, begin, end, part, num_parts, _, _ = load_item(items, place // HKV, True)
        head = place % HKV
        # Only the row's last part has the current token; a row without tokens has none.
        newest = tl.where((part == num_parts - 1) & (begin < end), end - 1, -1)
        last = begin + (tl.maximum(end - begin, 1) - 1) // BLOCK_N * BLOCK_N
        table_row = block_table + row.to(tl.int64) * table_stride
        slot = tl.load(slots + row)
        turn = load_turn(cos, sin, tl.load(positions + row), dims, ROT)
        norm_q = load_norm(q_norm, dims, in_dims, ROT)
        norm_k = load_norm(k_norm, dims, in_dims, ROT)
        first_visible = 0
        if HAS_WINDOW:
            first_visible = tl.load(context_lens + row) - window
        if IS_ROUNDED:
            k, v, k_scale, v_scale = load_rounded(
                k_pages, v_pages, k_pages, v_pages, k_scales, v_scales, table_row, head,
                page_stride, last, end, D, S, HKV, BLOCK_N, BLOCK_D, False, "evict_first",
                True)  # fmt: skip
        else:
            k = load_tile(k_pages, table_row, head * (S * D), page_stride, last, end, D, S, BLOCK_N,
                          BLOCK_D, True, "evict_first")  # fmt: skip
            v = load_tile(v_pages, table_row, head * (S * D), page_stride, last, end, D, S, BLOCK_N,
                          BLOCK_D, True, "evict_first")  # fmt: skip
        if LISTED:
            wait_for_inputs(PDL)
            release_successor(PDL)
        token = qkv + row.to(tl.int64) * ((HQ + 2 * HKV) * D)
        query = turned(token + (head * GROUP + group) * D, group < GROUP, dims, in_dims, turn,
                        norm_q, eps, D, ROT, HAS_NORM).to(qkv.dtype.element_ty)  # fmt: skip
        key = turned(token + (HQ + head) * D + one, one == 0, dims, in_dims, turn, norm_k, eps, D,
                      ROT, HAS_NORM)  # fmt: skip
        key = tl.reshape(key, [BLOCK_D])
        value = tl.load(token + (HQ + HKV + head) * D + dims, mask=in_dims, other=0.0)
        base = slot // S * page_stride + head * (S * D)
        offset = slot % S
        mask = in_dims & (tl.zeros_like(dims) <= newest)
        if IS_ROUNDED:
            value = value.to(tl.float32)
            key_scale, inverse = scales_of_top(tl.max(magnitude(key)))
            key = page_number(key, inverse)
            value_scale, inverse = scales_of_top(tl.max(magnitude(value)))
            value = page_number(value, inverse)
            at = slot // S * (HKV * S) + head * S + offset
            tl.store(k_scales + at, key_scale, mask=newest >= 0)
            tl.store(v_scales + at, value_scale, mask=newest >= 0)
            tl.store(k_pages + base + offset * D + dims, key, mask=mask)
            # A page has tokens of values innermost.
            tl.store(v_pages + base + offset + dims * S, value, mask=mask)
            result, lse = attend_rounded_fresh(
                query, key, value, key_scale, value_scale, k, v, k_scale, v_scale, k_pages, v_pages,
                k_scales, v_scales, table_row, head, page_stride, begin, last, end, newest,
                first_visible, scale, softcap, HKV, D, S, BLOCK_N, BLOCK_D, ROWS, DEPTH, HAS_WINDOW,
                HAS_SOFTCAP)  # fmt: skip
        else:
            key = key.to(qkv.dtype.element_ty)
            tl.store(k_pages + base + offset * D + dims, key, mask=mask)
            tl.store(v_pages + base + offset * D + dims, value, mask=mask)
            result, lse = attend_plain_fresh(
                query, key, value, k, v, k_pages, v_pages, table_row, head, page_stride, begin,
                last, end, newest, first_visible, scale, softcap, D, S, BLOCK_N, BLOCK_D, ROWS,
                DEPTH, HAS_WINDOW, HAS_SOFTCAP, PRECISION)  # fmt: skip
        finish_item(result, lse, row, head, part, num_parts, out, part_o, part_lse, arrivals,
                    part_stride, HQ, HKV, D, BLOCK_D, ROWS)  # fmt: skip


def _check(
    qkv: Tensor, fresh: FreshTokens, k_pages: Tensor, v_pages: Tensor, block_table: Tensor,
    work: DecodeWork,
) -> None:  # fmt: skip
    """Refuse what the kernel would read or write wrongly."""
    num_rows, num_heads, head_dim = qkv.shape
    require_contiguous(
        qkv=qkv, k_pages=k_pages, v_pages=v_pages, cos=fresh.cos, sin=fresh.sin,
        positions=fresh.positions, slots=fresh.slots,
    )  # fmt: skip
    shape = (work.num_heads, work.num_kv_heads, work.page_size, work.head_dim)
    given = (num_heads - 2 * work.num_kv_heads, k_pages.shape[1], k_pages.shape[2], head_dim)
    require(given == shape, f"(Hq, Hkv, S, D) is {given}, the work list was made for {shape}")
    require(16 <= head_dim <= 256 and head_dim % 16 == 0, f"head dim {head_dim}")
    require(num_rows <= work.max_rows, f"{num_rows} rows, buffers hold {work.max_rows}")
    require(work.active_groups is None, "tokens are not written amid shared runs")
    require(block_table.dtype == torch.int32, f"block_table is {block_table.dtype}")
    require(block_table.shape[0] >= num_rows and block_table.stride(1) == 1, "block_table layout")
    require((fresh.q_norm is None) == (fresh.k_norm is None), "q_norm and k_norm come together")
    require((fresh.cos is None) == (fresh.sin is None), "cos and sin come together")
    rotary = fresh.rotary_dim
    require(rotary <= head_dim and rotary % 2 == 0, f"rotary dims {rotary} of {head_dim}")
    require(len(fresh.positions) == len(fresh.slots) == num_rows, "a position and a slot per row")


def fresh_decode(
    qkv: Tensor,
    fresh: FreshTokens,
    k_pages: Tensor,
    v_pages: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    work: DecodeWork,
    *,
    scale: float,
    softcap: float | None = None,
    listed: bool = False,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    out: Tensor | None = None,
    tuning: FreshTuning | None = None,
) -> Tensor:
    """Rotate the current token of each sequence, write it to its slot, attend over all tokens.

    Args:
        qkv: [N, Hq + 2 Hkv, D], bf16/fp16/fp32, contiguous: projections. fresh: of the N tokens.
        k_pages, v_pages, k_scales, v_scales, block_table, context_lens, listed: as of
            `paged_decode`; no tokens are read together.
    Returns: [N, Hq, D], dtype of qkv; all in between is fp32.
    Raises: KernelInputError if shapes, dtypes or layouts do not match.
    Twin: `qkv_rope`, then reference.paged_decode.
    """
    _check(qkv, fresh, k_pages, v_pages, block_table, work)
    check_page_dtypes(qkv.dtype, k_pages, v_pages, k_scales, v_scales)
    num_heads, num_kv_heads, head_dim = work.num_heads, work.num_kv_heads, work.head_dim
    shape = (qkv.shape[0], num_heads, head_dim)
    out = qkv.new_empty(shape) if out is None else out
    require(out.shape == shape and out.is_contiguous(), f"out has shape {tuple(out.shape)}")
    rounded = k_scales is not None
    row_bytes = next_power_of_2(head_dim) * k_pages.element_size()
    options = dependent_launch(qkv.device)
    tuning = tuning or _TUNING
    _fresh_decode_kernel[(tuning.programs_per_processor * num_processors(qkv.device),)](
        qkv,
        fresh.positions,
        fresh.slots,
        fresh.cos,
        fresh.sin,
        fresh.q_norm,
        fresh.k_norm,
        k_pages,
        v_pages,
        k_scales,
        v_scales,
        out,
        block_table,
        context_lens,
        work.items,
        work.num_items,
        work.part_o,
        work.part_lse,
        work.arrivals,
        fresh.eps,
        block_table.stride(0),
        k_pages.stride(0),
        work.part_stride,
        scale,
        softcap or 1.0,
        work.sliding_window or 0,
        HQ=num_heads,
        HKV=num_kv_heads,
        D=head_dim,
        S=work.page_size,
        BLOCK_N=64 if rounded else min(64, max(16, _TILE_BYTES // row_bytes)),
        # A product in FP8 sums at least 32 numbers.
        BLOCK_D=max(next_power_of_2(head_dim), 32 if rounded else 16),
        ROWS=max(8 if rounded else 16, next_power_of_2(num_heads // num_kv_heads)),
        DEPTH=2,
        ROT=fresh.rotary_dim,
        HAS_NORM=fresh.q_norm is not None,
        HAS_WINDOW=work.sliding_window is not None,
        HAS_SOFTCAP=softcap is not None,
        PRECISION="ieee" if qkv.dtype == torch.float32 else "tf32",
        LISTED=listed and options["PDL"],
        num_warps=tuning.num_warps,
        maxnreg=tuning.max_registers,
        **options,
    )
    return out
