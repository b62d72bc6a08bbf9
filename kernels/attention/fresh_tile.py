"""Device functions of fresh decode: a last tile that came early, the current token put into it."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from tokenbus.kernels.attention.decode_tile import attend_tile, close_tiles, load_tile
from tokenbus.kernels.attention.rounded_tile import (
    close_rounded,
    fold_rounded,
    load_rounded,
    split_queries,
)


@triton.jit
def _placed(tile, fresh, is_fresh):
    """Put the current token where it belongs in a tile; numbers of e4m3 move as they are."""
    if tile.dtype == tl.float8e4nv:
        bits = tl.where(is_fresh, fresh.to(tl.int8, bitcast=True), tile.to(tl.int8, bitcast=True))
        return bits.to(tl.float8e4nv, bitcast=True)
    return tl.where(is_fresh, fresh, tile)


@triton.jit
def attend_plain_fresh(query, key, value, k, v, k_pages, v_pages, table_row, head, page_stride,
                       begin, last, end, newest, first_visible, scale, softcap, D: tl.constexpr,
                       S: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
                       ROWS: tl.constexpr, DEPTH: tl.constexpr, HAS_WINDOW: tl.constexpr,
                       HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Attend over the tile [last, end), k and v, with the current token in it, and those before."""
    is_fresh = (last + tl.arange(0, BLOCK_N) == newest)[:, None]
    k = _placed(k, key[None, :], is_fresh)
    v = _placed(v, value[None, :], is_fresh)
    m = tl.full([ROWS], float("-inf"), tl.float32)
    sums = tl.zeros([ROWS, BLOCK_N] if ROWS <= 16 else [ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    m, sums, acc = attend_tile(query, k, v, m, sums, acc, last, end, first_visible, scale, softcap,
                               BLOCK_N, True, HAS_WINDOW, HAS_SOFTCAP, False,
                               PRECISION)  # fmt: skip
    for offset in tl.range(0, last - begin, BLOCK_N, num_stages=2 * DEPTH + 1):
        start = begin + offset
        k = load_tile(k_pages, table_row, head * (S * D), page_stride, start, last, D, S, BLOCK_N,
                      BLOCK_D, False, "evict_first")  # fmt: skip
        v = load_tile(v_pages, table_row, head * (S * D), page_stride, start, last, D, S, BLOCK_N,
                      BLOCK_D, False, "evict_first")  # fmt: skip
        m, sums, acc = attend_tile(query, k, v, m, sums, acc, start, last, first_visible, scale,
                                   softcap, BLOCK_N, False, HAS_WINDOW, HAS_SOFTCAP, False,
                                   PRECISION)  # fmt: skip
    return close_tiles(m, sums, acc)


@triton.jit
def attend_rounded_fresh(query, key, value, key_scale, value_scale, k, v, k_scale, v_scale,
                         k_pages, v_pages, k_scales, v_scales, table_row, head, page_stride, begin,
                         last, end, newest, first_visible, scale, softcap, HKV: tl.constexpr,
                         D: tl.constexpr, S: tl.constexpr, BLOCK_N: tl.constexpr,
                         BLOCK_D: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
                         HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr):  # fmt: skip
    """Do the same over pages of FP8; each query is given twice."""
    is_fresh = last + tl.arange(0, BLOCK_N) == newest
    k = _placed(k, key[None, :], is_fresh[:, None])
    v = _placed(v, value[:, None], is_fresh[None, :])
    k_scale = tl.where(is_fresh, key_scale, k_scale)
    v_scale = tl.where(is_fresh, value_scale, v_scale)
    query, q_scale = split_queries(query, ROWS)
    m = tl.full([ROWS], float("-inf"), tl.float32)
    sums = tl.zeros([BLOCK_N, ROWS], tl.float32)
    acc = tl.zeros([BLOCK_D, 2 * ROWS], tl.float32)
    m, sums, acc = fold_rounded(query, q_scale, k, v, k_scale, v_scale, m, sums, acc, last, end,
                                first_visible, scale, softcap, ROWS, BLOCK_N, HAS_WINDOW,
                                HAS_SOFTCAP)  # fmt: skip
    for offset in tl.range(0, last - begin, BLOCK_N, num_stages=2 * DEPTH + 1):
        start = begin + offset
        k, v, k_scale, v_scale = load_rounded(
            k_pages, v_pages, k_pages, v_pages, k_scales, v_scales, table_row, head, page_stride,
            start, last, D, S, HKV, BLOCK_N, BLOCK_D, False, "evict_first")  # fmt: skip
        m, sums, acc = fold_rounded(query, q_scale, k, v, k_scale, v_scale, m, sums, acc, start,
                                    last, first_visible, scale, softcap, ROWS, BLOCK_N, HAS_WINDOW,
                                    HAS_SOFTCAP)  # fmt: skip
    return close_rounded(m, sums, acc, ROWS, BLOCK_D)
