"""Device functions of paged decode: load a tile of pages, attend over it, merge parts."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_tile(pages, table_row, head_offset, page_stride, start, limit,
              D: tl.constexpr, S: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
              MASKED: tl.constexpr, EVICT: tl.constexpr):  # fmt: skip
    """Load BLOCK_N tokens from `start` of one KV head, [BLOCK_N, BLOCK_D]; masked ones are zero.

    A tile inside one page needs one page id and is one contiguous block of memory.
    """
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    if S % BLOCK_N == 0:
        page = tl.load(table_row + start // S).to(tl.int64)
        base = pages + (page * page_stride + head_offset + (start % S) * D)
        pointers = base + offs_n[:, None] * D + offs_d[None, :]
    else:
        token = start + offs_n
        page = tl.load(table_row + token // S, mask=token < limit, other=0).to(tl.int64)
        offset = page * page_stride + head_offset + (token % S) * D
        pointers = pages + offset[:, None] + offs_d[None, :]
    if MASKED:
        mask = ((start + offs_n) < limit)[:, None] & (offs_d < D)[None, :]
        return tl.load(pointers, mask=mask, other=0.0, eviction_policy=EVICT)
    if BLOCK_D != D:
        return tl.load(pointers, mask=(offs_d < D)[None, :], other=0.0, eviction_policy=EVICT)
    return tl.load(pointers, eviction_policy=EVICT)


@triton.jit
def bend_scores(scores, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    """Scale raw dot products into base-2 logits, through softcap * tanh(s / softcap) if asked."""
    if HAS_SOFTCAP:
        # tanh(x) = 1 - 2 / (exp(2x) + 1), exact at both ends in fp32.
        bent = 1.0 - 2.0 / (tl.exp2(scores * (2.0 * scale / softcap * LOG2E)) + 1.0)
        return bent * (softcap * LOG2E)
    return scores * (scale * LOG2E)


@triton.jit
def attend_tile(q, k, v, m, sums, acc, start, limit, first_visible, scale, softcap,
                BLOCK_N: tl.constexpr, MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr,
                HAS_SOFTCAP: tl.constexpr, BY_ROW: tl.constexpr,
                PRECISION: tl.constexpr):  # fmt: skip
    """Fold one tile into the running maximum [R], the sums and acc [R, BLOCK_D].

    `limit` and `first_visible` are numbers, or `BY_ROW` one for each row, [R]. The sums of a small
    tile, [R, BLOCK_N], stay spread over its columns until the end: its warps lie side by side, so
    that is one exchange between warps less per tile. A tall tile keeps [R].
    """
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    scores = bend_scores(scores, scale, softcap, HAS_SOFTCAP)
    if BY_ROW:
        token = (start + tl.arange(0, BLOCK_N))[None, :]
        visible = token < limit[:, None]
        if HAS_WINDOW:
            visible = visible & (token >= first_visible[:, None])
        scores = tl.where(visible, scores, float("-inf"))
    elif MASKED or HAS_WINDOW:
        token = start + tl.arange(0, BLOCK_N)
        visible = token < limit
        if HAS_WINDOW:
            visible = visible & (token >= first_visible)
        scores = tl.where(visible[None, :], scores, float("-inf"))
    new_m = tl.maximum(m, tl.max(scores, axis=1))
    # A tile in front of the window leaves every score at -inf: keep the difference finite.
    base = tl.where(new_m == float("-inf"), 0.0, new_m)
    p = tl.exp2(scores - base[:, None])
    alpha = tl.exp2(m - base)
    sums = sums * alpha[:, None] + p if len(sums.shape) == 2 else sums * alpha + tl.sum(p, axis=1)
    acc = acc * alpha[:, None]
    acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    return new_m, sums, acc


@triton.jit
def close_tiles(m, sums, acc):
    """Return the normalised output [R, BLOCK_D] and the base-2 log-sum-exp [R]."""
    total = tl.sum(sums, axis=1) if len(sums.shape) == 2 else sums
    out = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    return out, m + tl.log2(total)


@triton.jit
def attend_range(q, k_pages, v_pages, table_row, head_offset, page_stride, begin, end,
                 row_ends, first_visible, scale, softcap, R: tl.constexpr, D: tl.constexpr,
                 S: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
                 DEPTH: tl.constexpr, MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr,
                 HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
                 EVICT: tl.constexpr):  # fmt: skip
    """Attend R query rows over tokens [begin, end); `begin` is a multiple of BLOCK_N.

    row_ends: where each row's own tokens end, [R]; None if all see all of them. Returns the
    normalised output [R, BLOCK_D] and the base-2 log-sum-exp [R]; an empty range gives zeros and
    -inf. DEPTH tiles are in flight: page ids and the tiles that they name are two levels of loads,
    so the loop has 2 * DEPTH + 1 stages. The last tile is masked inside the loop: a tile of its own
    after it would wait for memory with nothing else in flight.
    """
    m = tl.full([R], float("-inf"), tl.float32)
    sums = tl.zeros([R, BLOCK_N] if R <= 16 else [R], tl.float32)
    acc = tl.zeros([R, BLOCK_D], tl.float32)
    BY_ROW: tl.constexpr = row_ends is not None
    limits = end
    if BY_ROW:
        limits = tl.minimum(row_ends, end)
    # Counted from zero: Triton 3.6 takes a value for dead, and forgets to carry it through an outer
    # loop, if its only use is as the bound of an inner one.
    for offset in tl.range(0, end - begin, BLOCK_N, num_stages=2 * DEPTH + 1):
        start = begin + offset
        k = load_tile(k_pages, table_row, head_offset, page_stride, start, end,
                      D, S, BLOCK_N, BLOCK_D, MASKED, EVICT)  # fmt: skip
        v = load_tile(v_pages, table_row, head_offset, page_stride, start, end,
                      D, S, BLOCK_N, BLOCK_D, MASKED, EVICT)  # fmt: skip
        m, sums, acc = attend_tile(q, k, v, m, sums, acc, start, limits,
                                   first_visible, scale, softcap, BLOCK_N, MASKED, HAS_WINDOW,
                                   HAS_SOFTCAP, BY_ROW, PRECISION)  # fmt: skip
    return close_tiles(m, sums, acc)


@triton.jit
def merge_rows(part_o, part_lse, out, first_slot, out_row, parts, valid, slot_stride,
               D: tl.constexpr, BLOCK_D: tl.constexpr, UNROLL: tl.constexpr):  # fmt: skip
    """Combine the partial results of each valid row and write its output.

    first_slot: [R], index of part 0 of a row in units of one head's vector; out_row: [R],
    likewise in `out`. Parts are folded in their own order, not in that of their arrival, so the
    result does not depend on timing. A row's log-sum-exp lies four times side by side in memory:
    loaded for every element it takes the same layout as the vectors, and no exchange between
    threads keeps a load from overtaking its predecessors.
    """
    offs_d = tl.arange(0, BLOCK_D)[None, :]
    live = valid[:, None] & (offs_d < D)
    most = tl.max(tl.where(valid, parts, 0))
    # Spread before the loop: inside, the comparison would be made per row and passed around.
    slot = first_slot[:, None] + tl.zeros_like(offs_d)
    last = parts[:, None] + tl.zeros_like(offs_d)
    top = tl.full(live.shape, float("-inf"), tl.float32)
    total = tl.zeros(live.shape, tl.float32)
    acc = tl.zeros(live.shape, tl.float32)
    for j0 in tl.range(0, most, UNROLL, num_stages=1):
        for u in tl.static_range(UNROLL):
            here = live & (j0 + u < last)
            at = slot + (j0 + u) * slot_stride
            lse = tl.load(part_lse + at * 4 + offs_d % 4, mask=here, other=float("-inf"),
                          cache_modifier=".cg")  # fmt: skip
            part = tl.load(part_o + at * D + offs_d, mask=here, other=0.0, cache_modifier=".cg")
            new_top = tl.maximum(top, lse)
            base = tl.where(new_top == float("-inf"), 0.0, new_top)
            fade = tl.exp2(top - base)
            weight = tl.exp2(lse - base)
            total = total * fade + weight
            acc = acc * fade + part * weight
            top = new_top
    acc = acc / tl.where(total > 0.0, total, 1.0)
    tl.store(out + out_row[:, None] * D + offs_d, acc.to(out.dtype.element_ty), mask=live)
