"""Prefill attention for Hopper: one warp fetches, two groups of four attend 64 rows each.

While a group weighs its scores, the matrix units multiply for the other one, and its own weights of
the tile before by their values. Written in Gluon, which has no interpreter: where that runs, and
for other shapes, `paged_prefill` has a kernel for all of them.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton.language as tl
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

from tokenbus.kernels.launch import num_processors

if TYPE_CHECKING:
    from torch import Tensor

_load_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
# Rows of a group of warps, keys of a tile, dims of a head, and half of them: what a row of shared
# memory holds.
WAVE = gl.constexpr(64)
KEYS = gl.constexpr(128)
DIMS = gl.constexpr(128)
HALF = gl.constexpr(64)
# Keys that lie side by side in a page.
PAGED = gl.constexpr(64)


@gluon.jit
def _find(borders, tile, num_sequences, TOKENS: gl.constexpr, WARPS: gl.constexpr):
    """Return the sequence of a tile, as `paged_prefill` deals them out."""
    flat: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    found = 0
    for start in range(0, num_sequences + 1, 256):
        n = start + gl.arange(0, 256, layout=flat)
        border = gl.load(borders + n, mask=n <= num_sequences, other=0)
        is_before = (n <= num_sequences) & (border // TOKENS + n <= tile)
        found += gl.sum(is_before.to(gl.int32), axis=0)
    return found - 1


@gluon.jit
def _extent(borders, tiles, num_sequences, TOKENS: gl.constexpr, WARPS: gl.constexpr):
    """Return how many tiles lead up to the last with a token, and where those of padding begin."""
    flat: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    end = 0
    for start in range(0, num_sequences, 256):
        n = start + gl.arange(0, 256, layout=flat)
        first = gl.load(borders + n, mask=n < num_sequences, other=0)
        last = gl.load(borders + n + 1, mask=n < num_sequences, other=0)
        own = gl.where(last > first, first // TOKENS + n + (last - first - 1) // TOKENS + 1, 0)
        end = gl.maximum(end, gl.max(own, axis=0))
    padding = gl.load(borders + num_sequences) // TOKENS + num_sequences
    return end, gl.minimum(padding, tiles)


@gluon.jit
def _item(item, end, padding, tiles, context_lens, borders, num_sequences, num_tokens, HKV: gl.constexpr,
          TOKENS: gl.constexpr, WARPS: gl.constexpr):  # fmt: skip
    """Return what an item of work is: head, sequence, first token, last, first position, keys."""
    # Padding first, then the longest rows.
    tile = padding + item // HKV
    if tile >= tiles:
        tile = end - 1 - (tile - tiles)
    n = _find(borders, tile, num_sequences, TOKENS, WARPS)
    first = gl.load(borders + n)
    last = num_tokens
    if n < num_sequences:
        last = gl.load(borders + n + 1)
    token = first + (tile - first // TOKENS - n) * TOKENS
    context = 0
    if n < num_sequences:
        context = gl.load(context_lens + n)
    earliest = context - last + token
    keys = gl.minimum(earliest + TOKENS, context)
    if (n == num_sequences) | (token >= last):
        keys = 0
    return item % HKV, n, token, last, earliest, context, keys


@gluon.jit
def _fetch(k_tiles, v_tiles, block_table, context_lens, borders, ks, vs, k_ready, k_free, v_ready,
           v_free, tiles, num_tokens, num_sequences, table_stride, HKV: gl.constexpr,
           S: gl.constexpr, TOKENS: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Fetch keys and values of this program's items, tile by tile, as room for them is free."""
    turn = 0
    end, padding = _extent(borders, tiles, num_sequences, TOKENS, 1)
    items = (end + tiles - padding) * HKV
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        head, n, token, last, earliest, context, keys = _item(
            item, end, padding, tiles, context_lens, borders, num_sequences, num_tokens, HKV, TOKENS, 1)
        table = block_table + n.to(gl.int64) * table_stride
        for start in range(0, keys, KEYS):
            slot = turn % STAGES
            phase = (turn // STAGES & 1) ^ 1
            # Behind the last page the last one stands in: nobody sees what is there.
            second = gl.minimum(start + PAGED, (context - 1) // PAGED * PAGED)
            page = gl.load(table + start // S)
            page_2 = gl.load(table + second // S)
            row = (page * HKV + head) * S + start % S
            row_2 = (page_2 * HKV + head) * S + second % S
            mbarrier.wait(k_free.index(slot), phase)
            mbarrier.expect(k_ready.index(slot), KEYS * DIMS * 2)
            for half in gl.static_range(2):
                place = ks.index(slot * 2 + half)
                _load_tile(k_tiles, [row, half * HALF], k_ready.index(slot), place.slice(0, PAGED))
                _load_tile(k_tiles, [row_2, half * HALF], k_ready.index(slot), place.slice(PAGED, PAGED))
            mbarrier.wait(v_free.index(slot), phase)
            mbarrier.expect(v_ready.index(slot), KEYS * DIMS * 2)
            for half in gl.static_range(2):
                place = vs.index(slot * 2 + half)
                _load_tile(v_tiles, [row, half * HALF], v_ready.index(slot), place.slice(0, PAGED))
                _load_tile(v_tiles, [row_2, half * HALF], v_ready.index(slot), place.slice(PAGED, PAGED))
            turn += 1


@gluon.jit
def _clear(v, start, context):
    """Put zeros where a tile of values has none."""
    flat: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    keys = start + gl.arange(0, KEYS, layout=gl.SliceLayout(1, flat))
    value = v.load(flat)
    v.store(gl.where((keys < context)[:, None], value, 0.0).to(v.dtype))


@gluon.jit
def _scores(q, ks, slot, zero, WHICH: gl.constexpr):
    """Begin to multiply 64 rows by a tile of keys."""
    scores = warpgroup_mma(q.index(WHICH * 2), ks.index(slot * 2).permute((1, 0)), zero,
                           use_acc=False, is_async=True)  # fmt: skip
    return warpgroup_mma(q.index(WHICH * 2 + 1), ks.index(slot * 2 + 1).permute((1, 0)), scores,
                         is_async=True)  # fmt: skip


@gluon.jit
def _seen(scores, start, position):
    """Hide keys behind a row's own."""
    keys = start + gl.arange(0, KEYS, layout=gl.SliceLayout(0, scores.type.layout))
    return gl.where(keys[None, :] <= position[:, None], scores, float("-inf"))


@gluon.jit
def _step(q, ks, vs, k_ready, k_free, v_ready, v_free, turn, weights, acc, acc_2, m, total, sums, zero,
          start, position, rate, MASKED: gl.constexpr, STAGES: gl.constexpr,
          WHICH: gl.constexpr):  # fmt: skip
    """Weigh a tile of keys while the values of the tile before, `turn`, are multiplied.

    Nothing branches meanwhile: the compiler would wait before it does.
    """
    before = turn % STAGES
    slot = (turn + 1) % STAGES
    mbarrier.wait(k_ready.index(slot), (turn + 1) // STAGES & 1)
    scores = _scores(q, ks, slot, zero, WHICH)
    mbarrier.wait(v_ready.index(before), turn // STAGES & 1)
    acc = warpgroup_mma(weights, vs.index(before * 2), acc, is_async=True)
    acc_2 = warpgroup_mma(weights, vs.index(before * 2 + 1), acc_2, is_async=True)
    scores = warpgroup_mma_wait(2, deps=[scores])
    if MASKED:
        scores = _seen(scores, start, position)
    top = gl.maximum(m, gl.max(scores, axis=1) * rate)
    p = gl.exp2(scores * rate - top[:, None])
    shrunk = gl.exp2(m - top)
    total = total * shrunk + gl.sum(p, axis=1)
    # What is stored before the barrier has to be there: nothing of it moves behind the wait.
    sums.store(total)
    tl.debug_barrier()
    mbarrier.arrive(k_free.index(slot), count=1)
    acc, acc_2 = warpgroup_mma_wait(0, deps=[acc, acc_2])
    tl.debug_barrier()
    mbarrier.arrive(v_free.index(before), count=1)
    factor = gl.convert_layout(shrunk, gl.SliceLayout(1, acc.type.layout))[:, None]
    weights = gl.convert_layout(p.to(ks.dtype), weights.type.layout)
    return weights, acc * factor, acc_2 * factor, top, total


@gluon.jit
def _attend(q_rows, context_lens, borders, out, q, ks, vs, sums, k_ready, k_free, v_ready, v_free,
            tiles, num_tokens, num_sequences, q_stride, rate, HQ: gl.constexpr, HKV: gl.constexpr,
            TOKENS: gl.constexpr, STAGES: gl.constexpr, WHICH: gl.constexpr):  # fmt: skip
    """Attend half the rows of this program's items: WHICH half."""
    score: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    value: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    left: gl.constexpr = gl.DotOperandLayout(0, value, 2)
    flat: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    by_row: gl.constexpr = gl.SliceLayout(1, score)
    by_value: gl.constexpr = gl.SliceLayout(1, value)
    GROUP: gl.constexpr = HQ // HKV
    zero = gl.zeros([WAVE, KEYS], gl.float32, layout=score)
    turn = 0
    end, padding = _extent(borders, tiles, num_sequences, TOKENS, 4)
    items = (end + tiles - padding) * HKV
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        head, n, token, last, earliest, context, keys = _item(
            item, end, padding, tiles, context_lens, borders, num_sequences, num_tokens, HKV, TOKENS, 4)
        if keys > 0:
            # The rows of this group: tokens times the heads of one of keys.
            offs = WHICH * WAVE + gl.arange(0, WAVE, layout=gl.SliceLayout(1, flat))
            dims = gl.arange(0, HALF, layout=gl.SliceLayout(0, flat))
            tokens = token + offs // GROUP
            live = (offs < TOKENS * GROUP) & (tokens < last)
            at = tokens.to(gl.int64) * q_stride + (head * GROUP + offs % GROUP) * DIMS
            tl.debug_barrier()
            for half in gl.static_range(2):
                part = gl.load(q_rows + at[:, None] + (half * HALF + dims)[None, :],
                               mask=live[:, None], other=0.0)
                q.index(WHICH * 2 + half).store(part)
            fence_async_shared()
            tl.debug_barrier()
            position = earliest + (WHICH * WAVE + gl.arange(0, WAVE, layout=by_row)) // GROUP
            acc = gl.zeros([WAVE, HALF], gl.float32, layout=value)
            acc_2 = gl.zeros([WAVE, HALF], gl.float32, layout=value)
            slot = turn % STAGES
            mbarrier.wait(k_ready.index(slot), turn // STAGES & 1)
            scores = _scores(q, ks, slot, zero, WHICH)
            scores = warpgroup_mma_wait(0, deps=[scores])
            tl.debug_barrier()
            mbarrier.arrive(k_free.index(slot), count=1)
            scores = _seen(scores, 0, position)
            m = gl.max(scores, axis=1) * rate
            p = gl.exp2(scores * rate - m[:, None])
            total = gl.sum(p, axis=1)
            weights = gl.convert_layout(p.to(ks.dtype), left)
            whole = gl.minimum((earliest + WHICH * WAVE // GROUP + 1) // KEYS * KEYS, keys)
            for start in range(KEYS, whole, KEYS):
                weights, acc, acc_2, m, total = _step(
                    q, ks, vs, k_ready, k_free, v_ready, v_free, turn, weights, acc, acc_2, m,
                    total, sums.index(WHICH), zero, start, position, rate, False, STAGES, WHICH)
                turn += 1
            for start in range(gl.maximum(whole, KEYS), keys, KEYS):
                weights, acc, acc_2, m, total = _step(
                    q, ks, vs, k_ready, k_free, v_ready, v_free, turn, weights, acc, acc_2, m,
                    total, sums.index(WHICH), zero, start, position, rate, True, STAGES, WHICH)
                turn += 1
            slot = turn % STAGES
            mbarrier.wait(v_ready.index(slot), turn // STAGES & 1)
            final = (keys - 1) // KEYS * KEYS
            if final + KEYS > context:
                _clear(vs.index(slot * 2), final, context)
                _clear(vs.index(slot * 2 + 1), final, context)
                fence_async_shared()
                tl.debug_barrier()
            acc = warpgroup_mma(weights, vs.index(slot * 2), acc, is_async=True)
            acc_2 = warpgroup_mma(weights, vs.index(slot * 2 + 1), acc_2, is_async=True)
            acc, acc_2 = warpgroup_mma_wait(0, deps=[acc, acc_2])
            tl.debug_barrier()
            mbarrier.arrive(v_free.index(slot), count=1)
            turn += 1
            inverse = (1.0 / gl.convert_layout(total, by_value))[:, None]
            rows = WHICH * WAVE + gl.arange(0, WAVE, layout=by_value)
            columns = gl.arange(0, HALF, layout=gl.SliceLayout(0, value))
            token_of = token + rows // GROUP
            live_rows = ((rows < TOKENS * GROUP) & (token_of < last))[:, None]
            place = token_of.to(gl.int64) * (HQ * DIMS) + (head * GROUP + rows % GROUP) * DIMS
            place_2 = out + place[:, None] + columns[None, :]
            gl.store(place_2, (acc * inverse).to(ks.dtype), mask=live_rows)
            gl.store(place_2 + HALF, (acc_2 * inverse).to(ks.dtype), mask=live_rows)
        elif n == num_sequences:
            rows = WHICH * WAVE + gl.arange(0, WAVE, layout=by_value)
            columns = gl.arange(0, HALF, layout=gl.SliceLayout(0, value))
            token_of = token + rows // GROUP
            live_rows = ((rows < TOKENS * GROUP) & (token_of < last))[:, None]
            place = token_of.to(gl.int64) * (HQ * DIMS) + (head * GROUP + rows % GROUP) * DIMS
            nothing = gl.zeros([WAVE, HALF], ks.dtype, layout=value)
            place_2 = out + place[:, None] + columns[None, :]
            gl.store(place_2, nothing, mask=live_rows)
            gl.store(place_2 + HALF, nothing, mask=live_rows)


@gluon.jit(do_not_specialize=["tiles", "num_tokens", "num_sequences", "table_stride"])
def hopper_prefill_kernel(
    q_rows, k_tiles, v_tiles, block_table, context_lens, borders, out, tiles, num_tokens,
    num_sequences, q_stride, table_stride, rate, HQ: gl.constexpr, HKV: gl.constexpr,
    S: gl.constexpr, TOKENS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Attend items of 128 rows, tokens times the heads of one of keys, longest first."""
    q = gl.allocate_shared_memory(k_tiles.dtype, [4, WAVE, HALF], k_tiles.layout)
    ks = gl.allocate_shared_memory(k_tiles.dtype, [2 * STAGES, KEYS, HALF], k_tiles.layout)
    vs = gl.allocate_shared_memory(k_tiles.dtype, [2 * STAGES, KEYS, HALF], k_tiles.layout)
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    sums = gl.allocate_shared_memory(gl.float32, [2, WAVE], flat)
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(slot), count=1)
        mbarrier.init(k_free.index(slot), count=2)
        mbarrier.init(v_ready.index(slot), count=1)
        mbarrier.init(v_free.index(slot), count=2)
    gl.warp_specialize(
        [
            (_attend, (q_rows, context_lens, borders, out, q, ks, vs, sums, k_ready, k_free, v_ready,
                       v_free, tiles, num_tokens, num_sequences, q_stride, rate, HQ, HKV,
                       TOKENS, STAGES, 0)),
            (_attend, (q_rows, context_lens, borders, out, q, ks, vs, sums, k_ready, k_free, v_ready,
                       v_free, tiles, num_tokens, num_sequences, q_stride, rate, HQ, HKV,
                       TOKENS, STAGES, 1)),
            (_fetch, (k_tiles, v_tiles, block_table, context_lens, borders, ks, vs, k_ready, k_free,
                      v_ready, v_free, tiles, num_tokens, num_sequences, table_stride, HKV, S,
                      TOKENS, STAGES)),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip


def _described(pages: Tensor) -> TensorDescriptor:
    kept = gl.bfloat16 if pages.dtype == torch.bfloat16 else gl.float16
    shape = [PAGED.value, HALF.value]
    layout = gl.NVMMASharedLayout.get_default_for(shape, kept)
    return TensorDescriptor.from_tensor(pages.view(-1, DIMS.value), shape, layout)


def hopper_prefill(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    scale: float,
    out: Tensor,
    *,
    stays: bool = True,
    stages: int = 2,
) -> None:
    """Write what `paged_prefill` returns to `out`; the arguments are checked there."""
    num_tokens, num_heads, _ = q.shape
    num_sequences, num_kv_heads = context_lens.shape[0], k_pages.shape[1]
    tokens = 2 * WAVE.value // (num_heads // num_kv_heads)
    tiles = num_tokens // tokens + num_sequences + 1
    items = tiles * num_kv_heads
    hopper_prefill_kernel[(min(num_processors(q.device), items) if stays else items,)](
        q,
        _described(k_pages),
        _described(v_pages),
        block_table,
        context_lens,
        cu_seqlens_q,
        out,
        tiles,
        num_tokens,
        num_sequences,
        q.stride(0),
        block_table.stride(0),
        scale * 1.4426950408889634,
        HQ=num_heads,
        HKV=num_kv_heads,
        S=k_pages.shape[2],
        TOKENS=tokens,
        STAGES=stages,
        num_warps=4,
    )
