"""Prefill attention for Hopper's matrix unit: a product of queries and keys beside one of values.

Triton's own pipeliner waits for every product of queries and keys before it goes on, so that the
matrix unit rests while weights are computed. Here the product of the next tile's keys and that of
this tile's values are both under way while nothing else is computed, and the values' product while
the next weights are: written in Gluon, Triton's lower language, which names layouts, barriers and
waits. It has no interpreter; elsewhere, and where a case is not covered, `paged_prefill` runs.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

if TYPE_CHECKING:
    from torch import Tensor

LOG2E = 1.4426950408889634
# Query rows of a program, tokens x heads of a KV head, and keys of a tile. Two programs of four
# warps share a multiprocessor: each holds its queries and two tiles of keys and of values.
BLOCK_M, BLOCK_N, NUM_WARPS = 64, 64, 4
_TILES = gl.constexpr(2)
_DTYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}


@gluon.jit
def _find_sequence(cu_seqlens_q, tile, num_sequences, TOKENS: gl.constexpr, W: gl.constexpr):
    """Return the sequence of a tile: see `paged_prefill`."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [W], [0])
    found = 0
    for start in range(0, num_sequences + 1, 256):
        n = start + gl.arange(0, 256, layout)
        there = n <= num_sequences
        border = gl.load(cu_seqlens_q + n, mask=there, other=0)
        found += gl.sum((there & (border // TOKENS + n <= tile)).to(gl.int32), 0)
    return found - 1


@gluon.jit
def _fetch(pages, table_row, tile, head, bar, buffer, there, N: gl.constexpr, S: gl.constexpr,
           HKV: gl.constexpr):  # fmt: skip
    """Start to copy a tile, a part of one page, to shared memory, if it is `there`."""
    start = tile * N
    page = gl.load(table_row + start // S, mask=there, other=0)
    mbarrier.expect(bar, buffer.type.element_ty.primitive_bitwidth // 8 * N * buffer.type.shape[1],
                    pred=there)  # fmt: skip
    row = (page * HKV + head) * S + start % S
    tma.async_copy_global_to_shared(pages, [row, 0], bar, buffer, pred=there)


@gluon.jit
def _weigh(scores, m, total, rate, start, position, earliest, N: gl.constexpr,
           LAYOUT: gl.constexpr):  # fmt: skip
    """Return a tile's weights, the rows' maxima and sums with them, and what these have shrunk by.

    Keys behind a row's own token are hidden; most tiles have none.
    """
    if start + N > earliest + 1:
        key = start + gl.arange(0, N, gl.SliceLayout(0, LAYOUT))
        scores = gl.where(key[None, :] <= position[:, None], scores, float("-inf"))
    new_m = gl.maximum(m, gl.max(scores, 1))
    shrunk = gl.exp2((m - new_m) * rate)
    weights = gl.exp2(scores * rate - (new_m * rate)[:, None])
    return weights, new_m, total * shrunk + gl.sum(weights, 1), shrunk


@gluon.jit(do_not_specialize=["num_tokens", "num_sequences"])
def _prefill_kernel(
    q, k_pages, v_pages, block_table, context_lens, cu_seqlens_q, out, num_tokens, num_sequences,
    q_stride, table_stride, rate, HQ: gl.constexpr, HKV: gl.constexpr, D: gl.constexpr,
    S: gl.constexpr, M: gl.constexpr, N: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """Attend M rows, tokens x heads of one KV head, of one sequence; longest rows first."""
    GROUP: gl.constexpr = HQ // HKV
    TOKENS: gl.constexpr = M // GROUP
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [W, 1], [16, N, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [W, 1], [16, D, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    WHOLE: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [W, 1], [1, 0])
    ROWS: gl.constexpr = gl.SliceLayout(1, SCORES)
    dtype: gl.constexpr = q.dtype.element_ty
    head = gl.program_id(1)
    tile = gl.num_programs(0) - 1 - gl.program_id(0)
    n = _find_sequence(cu_seqlens_q, tile, num_sequences, TOKENS, W)
    first = gl.load(cu_seqlens_q + n)
    last = gl.load(cu_seqlens_q + n + 1, mask=n < num_sequences, other=num_tokens)
    token = first + (tile - first // TOKENS - n) * TOKENS
    if token < last:
        row = gl.arange(0, M, gl.SliceLayout(1, OUT))
        rows = token + row // GROUP
        columns = ((head * GROUP + row % GROUP) * D)[:, None]
        columns += gl.arange(0, D, gl.SliceLayout(0, OUT))[None, :]
        place = out + rows.to(gl.int64)[:, None] * (HQ * D) + columns
        is_meant = ((row < TOKENS * GROUP) & (rows < last))[:, None]
        if n == num_sequences:
            gl.store(place, gl.full([M, D], 0.0, dtype, OUT), mask=is_meant)
        else:
            q_tile = gl.allocate_shared_memory(
                dtype, [M, D], gl.NVMMASharedLayout.get_default_for([M, D], dtype)
            )
            k_tiles = gl.allocate_shared_memory(dtype, [_TILES, N, D], k_pages.layout)
            v_tiles = gl.allocate_shared_memory(dtype, [_TILES, N, D], v_pages.layout)
            k_bars = gl.allocate_shared_memory(gl.int64, [_TILES, 1], mbarrier.MBarrierLayout())
            v_bars = gl.allocate_shared_memory(gl.int64, [_TILES, 1], mbarrier.MBarrierLayout())
            for i in gl.static_range(_TILES):
                mbarrier.init(k_bars.index(i), count=1)
                mbarrier.init(v_bars.index(i), count=1)
            context = gl.load(context_lens + n)
            table_row = block_table + n.to(gl.int64) * table_stride
            earliest = context - last + token
            num = (gl.minimum(earliest + TOKENS, context) + N - 1) // N
            for i in gl.static_range(_TILES):
                _fetch(k_pages, table_row, i, head, k_bars.index(i), k_tiles.index(i), i < num,
                       N, S, HKV)  # fmt: skip
                _fetch(v_pages, table_row, i, head, v_bars.index(i), v_tiles.index(i), i < num,
                       N, S, HKV)  # fmt: skip
            q_row = gl.arange(0, M, gl.SliceLayout(1, WHOLE))
            q_rows = token + q_row // GROUP
            q_columns = ((head * GROUP + q_row % GROUP) * D)[:, None]
            q_columns += gl.arange(0, D, gl.SliceLayout(0, WHOLE))[None, :]
            is_there = ((q_row < TOKENS * GROUP) & (q_rows < last))[:, None]
            q_place = q + q_rows.to(gl.int64)[:, None] * q_stride + q_columns
            q_tile.store(gl.load(q_place, mask=is_there, other=0.0))
            fence_async_shared()
            gl.thread_barrier()
            position = earliest + gl.arange(0, M, ROWS) // GROUP
            nothing = gl.full([M, N], 0.0, gl.float32, SCORES)
            m = gl.full([M], float("-inf"), gl.float32, ROWS)
            total = gl.full([M], 0.0, gl.float32, ROWS)
            acc = gl.full([M, D], 0.0, gl.float32, OUT)
            mbarrier.wait(k_bars.index(0), 0)
            product = warpgroup_mma(q_tile, k_tiles.index(0).permute((1, 0)), nothing,
                                    use_acc=False, is_async=True)  # fmt: skip
            scores = warpgroup_mma_wait(0, deps=[product])
            gl.thread_barrier()
            _fetch(k_pages, table_row, _TILES, head, k_bars.index(0), k_tiles.index(0),
                   num > _TILES, N, S, HKV)  # fmt: skip
            weights, m, total, shrunk = _weigh(scores, m, total, rate, 0, position, earliest, N,
                                               SCORES)  # fmt: skip
            operand = gl.convert_layout(weights.to(dtype), WEIGHTS)
            for j in range(num - 1):
                k_at = (j + 1) % _TILES
                v_at = j % _TILES
                mbarrier.wait(k_bars.index(k_at), ((j + 1) // _TILES) & 1)
                product = warpgroup_mma(q_tile, k_tiles.index(k_at).permute((1, 0)), nothing,
                                        use_acc=False, is_async=True)  # fmt: skip
                mbarrier.wait(v_bars.index(v_at), (j // _TILES) & 1)
                summed = warpgroup_mma(operand, v_tiles.index(v_at), acc, is_async=True)
                scores = warpgroup_mma_wait(1, deps=[product])
                gl.thread_barrier()
                _fetch(k_pages, table_row, j + 1 + _TILES, head, k_bars.index(k_at),
                       k_tiles.index(k_at), j + 1 + _TILES < num, N, S, HKV)  # fmt: skip
                weights, m, total, shrunk = _weigh(scores, m, total, rate, (j + 1) * N, position,
                                                   earliest, N, SCORES)  # fmt: skip
                # The operand stays in its registers until the product that reads it has ended.
                acc, _ = warpgroup_mma_wait(0, deps=[summed, operand])
                acc *= gl.convert_layout(shrunk, gl.SliceLayout(1, OUT))[:, None]
                gl.thread_barrier()
                _fetch(v_pages, table_row, j + _TILES, head, v_bars.index(v_at),
                       v_tiles.index(v_at), j + _TILES < num, N, S, HKV)  # fmt: skip
                operand = gl.convert_layout(weights.to(dtype), WEIGHTS)
            v_at = (num - 1) % _TILES
            mbarrier.wait(v_bars.index(v_at), ((num - 1) // _TILES) & 1)
            if num * N > context:
                # What lies past the last token may be NaN, which a weight of 0 does not undo.
                values = v_tiles.index(v_at).load(WHOLE)
                key = (num - 1) * N + gl.arange(0, N, gl.SliceLayout(1, WHOLE))
                gl.thread_barrier()
                v_tiles.index(v_at).store(gl.where((key < context)[:, None], values, 0.0))
                fence_async_shared()
                gl.thread_barrier()
            summed = warpgroup_mma(operand, v_tiles.index(v_at), acc, is_async=True)
            acc, _ = warpgroup_mma_wait(0, deps=[summed, operand])
            acc /= gl.convert_layout(total, gl.SliceLayout(1, OUT))[:, None]
            gl.store(place, acc.to(dtype), mask=is_meant)


@cache
def _is_known(version: str) -> bool:
    """Tell whether this kernel has run on a GPU by this release of Triton: Gluon may change."""
    return version.split(".")[:2] == ["3", "6"]


def covers(q: Tensor, k_pages: Tensor) -> bool:
    """Tell whether `hopper_prefill` can take queries [T, Hq, D] over pages [P, Hkv, S, D]."""
    return (
        q.device.type == "cuda"
        and torch.cuda.get_device_capability(q.device)[0] == 9
        and _is_known(triton.__version__)
        and q.dtype in _DTYPES
        and k_pages.dtype == q.dtype
        and q.shape[2] in (64, 128)
        and k_pages.shape[2] % BLOCK_N == 0
        and q.shape[1] // k_pages.shape[1] <= BLOCK_M
    )


def hopper_prefill(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    out: Tensor,
    *,
    scale: float,
) -> None:
    """Do what `paged_prefill` does without window, soft cap and FP8; its checks have passed."""
    num_tokens, num_heads, head_dim = q.shape
    _, num_kv_heads, page_size, _ = k_pages.shape
    block = [BLOCK_N, head_dim]
    layout = gl.NVMMASharedLayout.get_default_for(block, _DTYPES[q.dtype])
    tiles = [
        TensorDescriptor.from_tensor(pages.view(-1, head_dim), block, layout)
        for pages in (k_pages, v_pages)
    ]
    tile_tokens = BLOCK_M // (num_heads // num_kv_heads)
    num_sequences = context_lens.shape[0]
    grid = (num_tokens // tile_tokens + num_sequences + 1, num_kv_heads)
    _prefill_kernel[grid](
        q, *tiles, block_table, context_lens, cu_seqlens_q, out, num_tokens, num_sequences,
        q.stride(0), block_table.stride(0), scale * LOG2E, HQ=num_heads, HKV=num_kv_heads,
        D=head_dim, S=page_size, M=BLOCK_M, N=BLOCK_N, W=NUM_WARPS, num_warps=NUM_WARPS,
    )  # fmt: skip
