"""Prefill attention: the tokens of several sequences over their pages, cached prefix included.

It is one file because a kernel and its launch share every argument.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from tokenbus.kernels.attention.hopper_prefill import hopper_prefill, takes_long
from tokenbus.kernels.attention.prefill_tile import (
    LOG2E,
    attend_masked,
    attend_rounded_pages,
    attend_whole,
)
from tokenbus.kernels.attention.rounded_tile import logits_of, split_tile
from tokenbus.kernels.launch import (
    next_power_of_2,
    require,
    require_contiguous,
    supports_dependent_launch,
)
from tokenbus.kernels.page_scales import check_page_dtypes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PrefillTuning:
    """How the prefill kernel is laid out on the chip; the defaults were swept on an H200.

    `block_m` counts query rows of a tile, tokens x heads of a KV head; `block_n` keys of a tile.
    `use_bulk_copy` reads whole tiles by the copy engine, which needs a tile inside one page.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    num_masked_stages: int
    use_bulk_copy: bool


def choose_tuning(
    dtype: torch.dtype,
    head_dim: int,
    page_size: int,
    device: torch.device,
    *,
    rounded: bool = False,
) -> PrefillTuning:
    """Return the layout that fits the registers and shared memory of a multiprocessor."""
    if dtype == torch.float32:
        return PrefillTuning(
            32, 32, num_warps=4, num_stages=1, num_masked_stages=1, use_bulk_copy=False
        )
    has_bulk_copy = page_size >= 64 and (device.type != "cuda" or supports_dependent_launch(device))
    if has_bulk_copy and 64 < head_dim <= 128:
        # Two programs of four warps share a multiprocessor, one computes while the other waits:
        # 480 TFLOP/s on 8k tokens of 128 dims against 455 of one program of eight warps, and
        # 289 against 248 on prompts of 100-1024.
        # The masked tiles of fresh rows may not cost the second program its memory.
        return PrefillTuning(
            64,
            64,
            num_warps=4,
            num_stages=5,
            num_masked_stages=2 if rounded else 3,
            use_bulk_copy=True,
        )
    # Of 256 dims, tiles of 64 keys spill registers. Of 64 dims (400 TFLOP/s against 370) and of
    # small pages (400 against 355), taller tiles spread the work beside the products over more.
    block_n = 32 if head_dim > 128 else 64
    return PrefillTuning(
        128, block_n, num_warps=8, num_stages=5, num_masked_stages=3, use_bulk_copy=has_bulk_copy
    )


@triton.jit
def _find_sequence(cu_seqlens_q, tile, num_sequences, TOKENS: tl.constexpr):
    """Return the sequence of a tile; `num_sequences` stands for the padding behind the last one.

    Sequence n owns the tiles from cu[n] // TOKENS + n on: never fewer than it needs, so that the
    grid follows from T and N alone and lengths stay on the device.
    """
    found = 0
    for start in range(0, num_sequences + 1, 256):
        n = start + tl.arange(0, 256)
        there = n <= num_sequences
        border = tl.load(cu_seqlens_q + n, mask=there, other=0)
        found += tl.sum((there & (border // TOKENS + n <= tile)).to(tl.int32))
    return found - 1


@triton.jit(do_not_specialize=["num_tokens", "num_sequences"])
def _prefill_kernel(
    q, k_pages, v_pages, k_scales, v_scales, k_tiles, v_tiles, fresh, fresh_tiles, fresh_stride,
    block_table, context_lens, cu_seqlens_q, out,
    num_tokens, num_sequences, q_stride, table_stride, page_stride, scale, softcap, window,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, S: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr, MASKED_STAGES: tl.constexpr, BULK: tl.constexpr, FRESH: tl.constexpr,
    CACHED: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend BLOCK_M rows, tokens x heads of one KV head, of one sequence; longest rows first."""
    GROUP: tl.constexpr = HQ // HKV
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    head = tl.program_id(1)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    n = _find_sequence(cu_seqlens_q, tile, num_sequences, TOKENS)
    first = tl.load(cu_seqlens_q + n)
    last = tl.load(cu_seqlens_q + n + 1, mask=n < num_sequences, other=num_tokens)
    token = first + (tile - first // TOKENS - n) * TOKENS
    if token >= last:
        return
    offs_r = tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    tokens = token + offs_r // GROUP
    columns = (head * GROUP + offs_r % GROUP)[:, None] * D + offs_d[None, :]
    mask = ((offs_r < TOKENS * GROUP) & (tokens < last))[:, None] & (offs_d < D)[None, :]
    place = out + tokens.to(tl.int64)[:, None] * (HQ * D) + columns
    if n == num_sequences:
        tl.store(place, tl.zeros([BLOCK_M, BLOCK_D], out.dtype.element_ty), mask=mask)
        return
    query = tl.load(q + tokens.to(tl.int64)[:, None] * q_stride + columns, mask=mask, other=0.0)
    context = tl.load(context_lens + n)
    earliest = context - last + token
    position = earliest + offs_r // GROUP
    table_row = block_table + n.to(tl.int64) * table_stride
    rate = scale * LOG2E
    if HAS_SOFTCAP:
        rate = tl.full([], LOG2E, tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    k_rows = k_pages
    v_rows = v_pages
    stride = page_stride
    k_column = head
    v_column = head
    first_row = 0
    if k_scales is not None and CACHED:
        high, low, q_scale = split_tile(query)
        # Of rounded pages what was there before this pass, or all if nothing is at hand.
        end = tl.minimum(earliest + TOKENS, context)
        if FRESH:
            end = tl.minimum(end, context - (last - first))
        begin = 0
        if HAS_WINDOW:
            begin = tl.maximum(earliest - window + 1, 0) // BLOCK_N * BLOCK_N
        if FRESH and not HAS_WINDOW:
            # What was there before is seen by all rows: only the last tile may be short.
            whole_end = end // BLOCK_N * BLOCK_N
            m, total, acc = attend_rounded_pages(
                high, low, q_scale, k_pages, v_pages, k_tiles, v_tiles, k_scales, v_scales,
                table_row, head, page_stride, begin, whole_end, position, m, total, acc, scale,
                softcap, window, D, S, HKV, BLOCK_N, BLOCK_D, STAGES, BULK, False, False,
                HAS_SOFTCAP, PRECISION,
            )  # fmt: skip
            begin = whole_end
        m, total, acc = attend_rounded_pages(
            high, low, q_scale, k_pages, v_pages, k_tiles, v_tiles, k_scales, v_scales, table_row,
            head, page_stride, begin, end, position, m, total, acc, scale, softcap, window, D, S,
            HKV, BLOCK_N, BLOCK_D, STAGES, BULK, True, HAS_WINDOW, HAS_SOFTCAP, PRECISION,
        )  # fmt: skip
        m = logits_of(m, q_scale, scale, HAS_SOFTCAP) / rate
    if FRESH:
        cached = context - (last - first)
        earliest -= cached
        position -= cached
        context -= cached
        k_column = (HQ + head) * D
        v_column = (HQ + HKV + head) * D
        stride = fresh_stride
        first_row = first
        k_rows = fresh + first.to(tl.int64) * stride + k_column
        v_rows = fresh + first.to(tl.int64) * stride + v_column
        k_tiles = fresh_tiles
        v_tiles = fresh_tiles
    if k_scales is None or FRESH:
        # Keys [0, begin) are behind every row's window, [whole_begin, whole_end) visible to all.
        end = tl.minimum(earliest + TOKENS, context)
        begin = 0
        whole_begin = 0
        if HAS_WINDOW:
            begin = tl.maximum(earliest - window + 1, 0) // BLOCK_N * BLOCK_N
            whole_begin = tl.maximum(end - window + BLOCK_N - 1, 0) // BLOCK_N * BLOCK_N
            whole_begin = tl.minimum(whole_begin, (earliest + 1) // BLOCK_N * BLOCK_N)
            whole_begin = tl.maximum(whole_begin, begin)
        seen = tl.maximum(earliest + 1 - whole_begin, 0)
        whole_end = whole_begin + seen // BLOCK_N * BLOCK_N
        head_offset = head * (S * D)
        # Fresh rows are one level of loads, pages are two: all stages but one hold tiles.
        HELD: tl.constexpr = (STAGES + 1) // 2 if FRESH else STAGES
        if HAS_WINDOW:
            m, total, acc = attend_masked(
                query, k_rows, v_rows, table_row, head_offset, stride, begin, whole_begin, context,
                position, m, total, acc, rate, scale, softcap, window, D, S, BLOCK_N, BLOCK_D,
                MASKED_STAGES, FRESH, True, HAS_SOFTCAP, PRECISION,
            )  # fmt: skip
        m, total, acc = attend_whole(
            query, k_rows, v_rows, k_tiles, v_tiles, table_row, k_column, v_column, first_row,
            head_offset, stride, whole_begin, whole_end, position, m, total, acc, rate, scale,
            softcap, D, S, HKV, BLOCK_N, BLOCK_D, HELD, BULK, FRESH, HAS_SOFTCAP, PRECISION,
        )  # fmt: skip
        m, total, acc = attend_masked(
            query, k_rows, v_rows, table_row, head_offset, stride, whole_end, end, context,
            position, m, total, acc, rate, scale, softcap, window, D, S, BLOCK_N, BLOCK_D,
            MASKED_STAGES, FRESH, HAS_WINDOW, HAS_SOFTCAP, PRECISION,
        )  # fmt: skip
    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(place, acc.to(out.dtype.element_ty), mask=mask)


def _check(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, block_table: Tensor, context_lens: Tensor,
    cu_seqlens_q: Tensor, scale: float,
) -> None:  # fmt: skip
    """Refuse what the kernel would read wrongly."""
    require(q.dim() == 3 and k_pages.dim() == 4, f"q {tuple(q.shape)}, K {tuple(k_pages.shape)}")
    _, num_heads, head_dim = q.shape
    _, num_kv_heads, page_size, _ = k_pages.shape
    require_contiguous(k_pages=k_pages, v_pages=v_pages, context_lens=context_lens)
    require_contiguous(cu_seqlens_q=cu_seqlens_q)
    require(k_pages.shape[3] == head_dim, f"pages have D {k_pages.shape[3]}, q has {head_dim}")
    require(16 <= head_dim <= 256 and head_dim % 16 == 0, f"head dim {head_dim}")
    require(num_heads % num_kv_heads == 0, f"{num_heads} heads over {num_kv_heads} KV heads")
    require(num_heads // num_kv_heads <= 32, f"{num_heads // num_kv_heads} heads per KV head")
    require(next_power_of_2(page_size) == page_size >= 16, f"page size {page_size}")
    require(q.stride(2) == 1 and q.stride(1) == head_dim, f"q has strides {q.stride()}")
    for tensor in (block_table, context_lens, cu_seqlens_q):
        require(tensor.dtype == torch.int32, f"tables and lengths are int32, not {tensor.dtype}")
    num_sequences = context_lens.shape[0]
    require(cu_seqlens_q.shape[0] == num_sequences + 1, f"{cu_seqlens_q.shape[0]} borders")
    require(block_table.shape[0] >= num_sequences and block_table.stride(1) == 1, "block_table")
    require(scale > 0.0, f"scale {scale} must be positive")


def paged_prefill(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    *,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    fresh: Tensor | None = None,
    reads_cache: bool = True,
    out: Tensor | None = None,
    tuning: PrefillTuning | None = None,
) -> Tensor:
    """Attend the last tokens of N sequences causally over their pages, in one launch.

    Args:
        q: [T, Hq, D], bf16/fp16/fp32, rotated; a token's heads are contiguous, tokens may be
            strided.
        k_pages, v_pages: [P, Hkv, S, D], dtype of q; the tokens of this pass are already in them.
        k_scales, v_scales: [P, Hkv, S] float32 of pages in FP8: value * scale.
        fresh: with FP8 pages, [T, (Hq + 2 Hkv) D], what `qkv_rope` left there: keys and values of
            this pass in the dtype of q, from where they are read faster than from pages.
        reads_cache: False if no sequence has tokens of earlier passes, so that with `fresh` no page
            is read: a kernel that knows no pages is 10 % faster.
        block_table: [N, max_pages] int32; entries past a sequence's last page are never read.
        context_lens: [N] int32, tokens of each sequence, those of this pass included.
        cu_seqlens_q: [N + 1] int32, borders of the sequences in T; 0 tokens are allowed.
        sliding_window: keys that a query sees, itself included.
    Returns: [T, Hq, D], dtype of q, softmax and sums in fp32; rows from cu_seqlens_q[N] on are
        zero. Nothing is read back to the host, so that a graph for T tokens serves all lengths.
    Raises: KernelInputError if shapes, dtypes or layouts do not fit together.
    Source: FlashAttention-2 (Dao 2023); twin: reference.paged_prefill.
    """
    _check(q, k_pages, v_pages, block_table, context_lens, cu_seqlens_q, scale)
    check_page_dtypes(q.dtype, k_pages, v_pages, k_scales, v_scales)
    num_tokens, num_heads, head_dim = q.shape
    num_sequences, num_kv_heads = context_lens.shape[0], k_pages.shape[1]
    page_size, block_d = k_pages.shape[2], next_power_of_2(head_dim)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    require(out.shape == q.shape and out.is_contiguous(), f"out has shape {tuple(out.shape)}")
    is_plain = tuning is None and sliding_window is None and softcap is None
    if is_plain and takes_long(q, k_pages, num_sequences):
        return hopper_prefill(
            q, k_pages, v_pages, block_table, context_lens, cu_seqlens_q, scale=scale, out=out
        )
    tuning = tuning or choose_tuning(
        q.dtype, head_dim, page_size, q.device, rounded=k_scales is not None
    )
    tiles: list[Any] = [k_pages, v_pages]
    fresh_tiles: Any = fresh
    if fresh is not None:
        width = (num_heads + 2 * num_kv_heads) * head_dim
        require(k_scales is not None, "fresh keys and values are for FP8 pages")
        require(fresh.shape == (num_tokens, width), f"fresh rows have shape {tuple(fresh.shape)}")
        require(fresh.dtype == q.dtype, f"q is {q.dtype}, fresh rows are {fresh.dtype}")
        require_contiguous(fresh=fresh)
    if tuning.use_bulk_copy:
        require(page_size % tuning.block_n == 0, f"tiles of {tuning.block_n}, pages {page_size}")
        block = [tuning.block_n, block_d]
        tiles = [TensorDescriptor.from_tensor(k_pages.view(-1, head_dim), block)]
        if k_scales is None:
            tiles.append(TensorDescriptor.from_tensor(v_pages.view(-1, head_dim), block))
        else:
            tiles.append(TensorDescriptor.from_tensor(v_pages.view(-1, page_size), block[::-1]))
        if fresh is not None:
            fresh_tiles = TensorDescriptor.from_tensor(fresh, block)
    tile_tokens = tuning.block_m // (num_heads // num_kv_heads)
    grid = (num_tokens // tile_tokens + num_sequences + 1, num_kv_heads)
    _prefill_kernel[grid](
        q,
        k_pages,
        v_pages,
        k_scales,
        v_scales,
        tiles[0],
        tiles[1],
        fresh,
        fresh_tiles,
        0 if fresh is None else fresh.stride(0),
        block_table,
        context_lens,
        cu_seqlens_q,
        out,
        num_tokens,
        num_sequences,
        q.stride(0),
        block_table.stride(0),
        k_pages.stride(0),
        scale,
        softcap or 1.0,
        sliding_window or 0,
        HQ=num_heads,
        HKV=num_kv_heads,
        D=head_dim,
        S=page_size,
        BLOCK_M=tuning.block_m,
        BLOCK_N=tuning.block_n,
        BLOCK_D=block_d,
        STAGES=tuning.num_stages,
        MASKED_STAGES=tuning.num_masked_stages,
        BULK=tuning.use_bulk_copy,
        FRESH=fresh is not None,
        CACHED=reads_cache or fresh is None,
        HAS_WINDOW=sliding_window is not None,
        HAS_SOFTCAP=softcap is not None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=tuning.num_warps,
    )
    return out
