"""Prefill attention for long prompts on Hopper: one warp fetches, two groups of four attend.

While a group weighs its scores, the matrix units multiply for the other one, and its own weights of
the tile before by their values. Gluon has no interpreter: under Triton's, on other GPUs and
for other shapes, `paged_prefill` has a kernel for all of them.

It is one file because the parts of a kernel share tiles and barriers.
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
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from tokenbus.kernels.attention.prefill_tile import LOG2E
from tokenbus.kernels.hopper import is_hopper, load_tile

if TYPE_CHECKING:
    from torch import Tensor

# Rows of a group of warps, keys of a tile, dims of a head, and half of them: what a row of shared
# memory holds.
_WAVE = gl.constexpr(64)
_KEYS = gl.constexpr(128)
_DIMS = gl.constexpr(128)
_HALF = gl.constexpr(64)
# Keys that lie side by side in a page.
_PAGED = gl.constexpr(64)
# Tiles of keys, and of values, in flight.
_STAGES = 2
# Tokens that prompts have on average from which on this kernel is the faster one. On an H200, of 16
# heads over 8, us: one prompt of 8,000 tokens 462 for 509, four of 2,000 176 for 192, sixteen of
# 500 112 for 86: a program has a multiprocessor to itself, which waits while it begins and ends.
_LEAST_TOKENS = 1024
_KEPT = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}


@gluon.jit
def _find(borders, tile, num_sequences, TOKENS: gl.constexpr, WARPS: gl.constexpr):
    """Return the sequence of a tile, as `paged_prefill` deals them out."""
    flat: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    found = 0
    for start in range(0, num_sequences + 1, 256):
        n = start + gl.arange(0, 256, layout=flat)
        border = gl.load(borders + n, mask=n <= num_sequences, other=0)
        mine = (n <= num_sequences) & (border // TOKENS + n <= tile)
        found += gl.sum(mine.to(gl.int32), axis=0)
    return found - 1


@gluon.jit
def _item(lens, borders, num_sequences, num_tokens, TOKENS: gl.constexpr,
          WARPS: gl.constexpr):  # fmt: skip
    """Return what this program attends: sequence, tokens, position of the first, keys, context."""
    tile = gl.num_programs(1) - 1 - gl.program_id(1)
    n = _find(borders, tile, num_sequences, TOKENS, WARPS)
    first = gl.load(borders + n)
    last = num_tokens
    context = 0
    if n < num_sequences:
        last = gl.load(borders + n + 1)
        context = gl.load(lens + n)
    token = first + (tile - first // TOKENS - n) * TOKENS
    earliest = context - last + token
    keys = gl.minimum(earliest + TOKENS, context)
    # Padding behind the last sequence has no keys, nor has a tile without a token.
    if (n == num_sequences) | (token >= last):
        keys = 0
    return n, token, last, earliest, keys, context


@gluon.jit
def _fetch_tile(tiles, ready, places, slot, row, row_2):
    """Fetch the two pages of a tile, and of each the two halves of its dims."""
    mbarrier.expect(ready, _KEYS * _DIMS * 2)
    for half in gl.static_range(2):
        place = places.index(2 * slot + half)
        load_tile(tiles, [row, half * _HALF], ready, place.slice(0, _PAGED))
        load_tile(tiles, [row_2, half * _HALF], ready, place.slice(_PAGED, _PAGED))


@gluon.jit
def _fetch(k_tiles, v_tiles, block_table, lens, borders, ks, vs, k_ready, k_free, v_ready, v_free,
           num_tokens, num_sequences, table_stride, HKV: gl.constexpr, S: gl.constexpr,
           TOKENS: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Fetch the keys and values that this program attends, as room for them is free."""
    n, _token, _last, _earliest, keys, context = _item(
        lens, borders, num_sequences, num_tokens, TOKENS, 1
    )
    table = block_table + n.to(gl.int64) * table_stride
    head = gl.program_id(0)
    for start in range(0, keys, _KEYS):
        turn = start // _KEYS
        slot = turn % STAGES
        phase = (turn // STAGES & 1) ^ 1
        # Behind the last page it stands in for the next: nobody sees what is there.
        second = gl.minimum(start + _PAGED, (context - 1) // _PAGED * _PAGED)
        row = (gl.load(table + start // S) * HKV + head) * S + start % S
        row_2 = (gl.load(table + second // S) * HKV + head) * S + second % S
        mbarrier.wait(k_free.index(slot), phase)
        _fetch_tile(k_tiles, k_ready.index(slot), ks, slot, row, row_2)
        mbarrier.wait(v_free.index(slot), phase)
        _fetch_tile(v_tiles, v_ready.index(slot), vs, slot, row, row_2)


@gluon.jit
def _rows(token, last, WHICH: gl.constexpr, GROUP: gl.constexpr, TOKENS: gl.constexpr,
          layout: gl.constexpr):  # fmt: skip
    """Return tokens, columns and use of the rows of a group: tokens times the heads of one."""
    offs = WHICH * _WAVE + gl.arange(0, _WAVE, layout=layout)
    tokens = token + offs // GROUP
    columns = (gl.program_id(0) * GROUP + offs % GROUP) * _DIMS
    return tokens.to(gl.int64), columns, (offs < TOKENS * GROUP) & (tokens < last)


@gluon.jit
def _take(q_rows, qs, token, last, q_stride, WHICH: gl.constexpr, GROUP: gl.constexpr,
          TOKENS: gl.constexpr):  # fmt: skip
    """Bring 64 rows of queries to where they are multiplied from."""
    flat: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    tokens, columns, live = _rows(token, last, WHICH, GROUP, TOKENS, gl.SliceLayout(1, flat))
    dims = gl.arange(0, _HALF, layout=gl.SliceLayout(0, flat))
    place = q_rows + (tokens * q_stride + columns)[:, None] + dims[None, :]
    qs.index(2 * WHICH).store(gl.load(place, mask=live[:, None], other=0.0))
    qs.index(2 * WHICH + 1).store(gl.load(place + _HALF, mask=live[:, None], other=0.0))
    fence_async_shared()
    tl.debug_barrier()


@gluon.jit
def _write(out, acc, acc_2, token, last, WHICH: gl.constexpr, HQ: gl.constexpr,
           GROUP: gl.constexpr, TOKENS: gl.constexpr):  # fmt: skip
    """Write the two halves of 64 rows."""
    layout: gl.constexpr = acc.type.layout
    tokens, columns, live = _rows(token, last, WHICH, GROUP, TOKENS, gl.SliceLayout(1, layout))
    dims = gl.arange(0, _HALF, layout=gl.SliceLayout(0, layout))
    place = out + (tokens * (HQ * _DIMS) + columns)[:, None] + dims[None, :]
    gl.store(place, acc.to(out.dtype.element_ty), mask=live[:, None])
    gl.store(place + _HALF, acc_2.to(out.dtype.element_ty), mask=live[:, None])


@gluon.jit
def _clear(vs, slot, start, context):
    """Put zeros where a tile of values has none."""
    flat: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    is_there = start + gl.arange(0, _KEYS, layout=gl.SliceLayout(1, flat)) < context
    for half in gl.static_range(2):
        place = vs.index(2 * slot + half)
        place.store(gl.where(is_there[:, None], place.load(flat), 0.0).to(vs.dtype))
    fence_async_shared()
    tl.debug_barrier()


@gluon.jit
def _scores(qs, ks, slot, zero, WHICH: gl.constexpr):
    """Begin to multiply 64 rows by a tile of keys."""
    first, second = ks.index(2 * slot), ks.index(2 * slot + 1)
    scores = warpgroup_mma(qs.index(2 * WHICH), first.permute((1, 0)), zero, use_acc=False,
                           is_async=True)  # fmt: skip
    return warpgroup_mma(qs.index(2 * WHICH + 1), second.permute((1, 0)), scores, is_async=True)


@gluon.jit
def _values(weights, vs, slot, acc, acc_2):
    """Begin to multiply 64 rows of weights by a tile of values."""
    acc = warpgroup_mma(weights, vs.index(2 * slot), acc, is_async=True)
    return acc, warpgroup_mma(weights, vs.index(2 * slot + 1), acc_2, is_async=True)


@gluon.jit
def _seen(scores, start, position):
    """Hide keys behind a row's own."""
    keys = start + gl.arange(0, _KEYS, layout=gl.SliceLayout(0, scores.type.layout))
    return gl.where(keys[None, :] <= position[:, None], scores, float("-inf"))


@gluon.jit
def _step(qs, ks, vs, sums, k_ready, k_free, v_ready, v_free, weights, acc, acc_2, m, total, zero,
          start, position, rate, MASKED: gl.constexpr, STAGES: gl.constexpr,
          WHICH: gl.constexpr):  # fmt: skip
    """Weigh a tile of keys while the values of the tile before are multiplied.

    Nothing branches meanwhile: the compiler would wait before it does.
    """
    turn = start // _KEYS
    slot = turn % STAGES
    before = (turn - 1) % STAGES
    mbarrier.wait(k_ready.index(slot), turn // STAGES & 1)
    scores = _scores(qs, ks, slot, zero, WHICH)
    mbarrier.wait(v_ready.index(before), (turn - 1) // STAGES & 1)
    acc, acc_2 = _values(weights, vs, before, acc, acc_2)
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
def _attend_tiles(qs, ks, vs, sums, k_ready, k_free, v_ready, v_free, earliest, keys, context, rate,
                  GROUP: gl.constexpr, STAGES: gl.constexpr, WHICH: gl.constexpr):  # fmt: skip
    """Attend 64 rows over the tiles of their keys, of which there is one at least."""
    score: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    value: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    offs = WHICH * _WAVE + gl.arange(0, _WAVE, layout=gl.SliceLayout(1, score))
    position = earliest + offs // GROUP
    zero = gl.zeros([_WAVE, _KEYS], gl.float32, layout=score)
    acc = gl.zeros([_WAVE, _HALF], gl.float32, layout=value)
    acc_2 = gl.zeros([_WAVE, _HALF], gl.float32, layout=value)
    mbarrier.wait(k_ready.index(0), 0)
    scores = warpgroup_mma_wait(0, deps=[_scores(qs, ks, 0, zero, WHICH)])
    tl.debug_barrier()
    mbarrier.arrive(k_free.index(0), count=1)
    scores = _seen(scores, 0, position)
    m = gl.max(scores, axis=1) * rate
    p = gl.exp2(scores * rate - m[:, None])
    total = gl.sum(p, axis=1)
    weights = gl.convert_layout(p.to(ks.dtype), gl.DotOperandLayout(0, value, 2))
    # Tiles that all rows of this group see whole, then the others.
    whole = gl.minimum((earliest + WHICH * _WAVE // GROUP + 1) // _KEYS * _KEYS, keys)
    for start in range(_KEYS, whole, _KEYS):
        weights, acc, acc_2, m, total = _step(
            qs, ks, vs, sums, k_ready, k_free, v_ready, v_free, weights, acc, acc_2, m, total, zero,
            start, position, rate, False, STAGES, WHICH,
        )  # fmt: skip
    for start in range(gl.maximum(whole, _KEYS), keys, _KEYS):
        weights, acc, acc_2, m, total = _step(
            qs, ks, vs, sums, k_ready, k_free, v_ready, v_free, weights, acc, acc_2, m, total, zero,
            start, position, rate, True, STAGES, WHICH,
        )  # fmt: skip
    turn = (keys - 1) // _KEYS
    slot = turn % STAGES
    mbarrier.wait(v_ready.index(slot), turn // STAGES & 1)
    if (turn + 1) * _KEYS > context:
        _clear(vs, slot, turn * _KEYS, context)
    acc, acc_2 = _values(weights, vs, slot, acc, acc_2)
    acc, acc_2 = warpgroup_mma_wait(0, deps=[acc, acc_2])
    inverse = (1.0 / gl.convert_layout(total, gl.SliceLayout(1, value)))[:, None]
    return acc * inverse, acc_2 * inverse


@gluon.jit
def _attend(q_rows, lens, borders, out, qs, ks, vs, sums, k_ready, k_free, v_ready, v_free,
            num_tokens, num_sequences, q_stride, rate, HQ: gl.constexpr, HKV: gl.constexpr,
            TOKENS: gl.constexpr, STAGES: gl.constexpr, WHICH: gl.constexpr):  # fmt: skip
    """Attend half the rows of this program: WHICH half. Rows without keys are zero."""
    GROUP: gl.constexpr = HQ // HKV
    value: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    _n, token, last, earliest, keys, context = _item(
        lens, borders, num_sequences, num_tokens, TOKENS, 4
    )
    acc = gl.zeros([_WAVE, _HALF], gl.float32, layout=value)
    acc_2 = gl.zeros([_WAVE, _HALF], gl.float32, layout=value)
    if keys > 0:
        _take(q_rows, qs, token, last, q_stride, WHICH, GROUP, TOKENS)
        acc, acc_2 = _attend_tiles(
            qs, ks, vs, sums.index(WHICH), k_ready, k_free, v_ready, v_free, earliest, keys,
            context, rate, GROUP, STAGES, WHICH,
        )  # fmt: skip
    _write(out, acc, acc_2, token, last, WHICH, HQ, GROUP, TOKENS)


@gluon.jit(do_not_specialize=["num_tokens", "num_sequences", "table_stride"])
def hopper_prefill_kernel(
    q_rows, k_tiles, v_tiles, block_table, lens, borders, out, num_tokens, num_sequences, q_stride,
    table_stride, rate, HQ: gl.constexpr, HKV: gl.constexpr, S: gl.constexpr,
    TOKENS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Attend 128 rows, tokens times the heads of one of keys, of one sequence; longest first."""
    kept: gl.constexpr = k_tiles.dtype
    layout: gl.constexpr = k_tiles.layout
    qs = gl.allocate_shared_memory(kept, [4, _WAVE, _HALF], layout)
    ks = gl.allocate_shared_memory(kept, [2 * STAGES, _KEYS, _HALF], layout)
    vs = gl.allocate_shared_memory(kept, [2 * STAGES, _KEYS, _HALF], layout)
    sums = gl.allocate_shared_memory(gl.float32, [2, _WAVE], gl.SwizzledSharedLayout(1, 1, 1, [0]))
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
            (_attend, (q_rows, lens, borders, out, qs, ks, vs, sums, k_ready, k_free, v_ready,
                       v_free, num_tokens, num_sequences, q_stride, rate, HQ, HKV, TOKENS, STAGES,
                       0)),
            (_attend, (q_rows, lens, borders, out, qs, ks, vs, sums, k_ready, k_free, v_ready,
                       v_free, num_tokens, num_sequences, q_stride, rate, HQ, HKV, TOKENS, STAGES,
                       1)),
            (_fetch, (k_tiles, v_tiles, block_table, lens, borders, ks, vs, k_ready, k_free,
                      v_ready, v_free, num_tokens, num_sequences, table_stride, HKV, S, TOKENS,
                      STAGES)),
        ],
        [4, 1],
        # Registers of those who attend and of the one who fetches, of 65,536 for all.
        [232, 40],
    )  # fmt: skip


def _described(pages: Tensor) -> TensorDescriptor:
    shape = [_PAGED.value, _HALF.value]
    layout = gl.NVMMASharedLayout.get_default_for(shape, _KEPT[pages.dtype])
    return TensorDescriptor.from_tensor(pages.view(-1, _DIMS.value), shape, layout)


def takes_long(q: Tensor, k_pages: Tensor, num_sequences: int) -> bool:
    """Say whether prompts are long, and shapes and device those of the kernel."""
    return bool(
        q.shape[0] >= _LEAST_TOKENS * num_sequences
        and is_hopper(q.device)
        and q.dtype in _KEPT
        and k_pages.dtype == q.dtype
        and q.shape[2] == _DIMS.value
        and q.shape[1] // k_pages.shape[1] <= 2 * _WAVE.value
        and k_pages.shape[2] % _PAGED.value == 0
    )


def hopper_prefill(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    *,
    scale: float,
    out: Tensor,
) -> Tensor:
    """Return in `out` what `paged_prefill` does, of what `takes_long`; arguments as there."""
    num_tokens, num_heads, _ = q.shape
    num_sequences, num_kv_heads = context_lens.shape[0], k_pages.shape[1]
    tile_tokens = 2 * _WAVE.value // (num_heads // num_kv_heads)
    hopper_prefill_kernel[(num_kv_heads, num_tokens // tile_tokens + num_sequences + 1)](
        q,
        _described(k_pages),
        _described(v_pages),
        block_table,
        context_lens,
        cu_seqlens_q,
        out,
        num_tokens,
        num_sequences,
        q.stride(0),
        block_table.stride(0),
        scale * LOG2E,
        HQ=num_heads,
        HKV=num_kv_heads,
        S=k_pages.shape[2],
        TOKENS=tile_tokens,
        STAGES=_STAGES,
        num_warps=4,
    )
    return out
