"""Device functions of paged prefill: fold tiles of keys into the rows of one program."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from tokenbus.kernels.attention.decode_tile import load_tile
from tokenbus.kernels.attention.rounded_tile import fold_widened, load_rounded

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _scores(q, k, start, position, scale, softcap, window, BLOCK_N: tl.constexpr,
            MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """Return q k^T [BLOCK_M, BLOCK_N], bent by the soft cap, -inf where a key is not visible."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if HAS_SOFTCAP:
        # tanh(x) = 1 - 2 / (exp(2x) + 1), exact at both ends in fp32.
        bent = tl.exp2(scores * (2.0 * scale / softcap * LOG2E))
        scores = softcap - 2.0 * softcap / (bent + 1.0)
    if MASKED:
        key = start + tl.arange(0, BLOCK_N)
        visible = key[None, :] <= position[:, None]
        if HAS_WINDOW:
            visible = visible & (key[None, :] > position[:, None] - window)
        scores = tl.where(visible, scores, float("-inf"))
    return scores


@triton.jit
def _rebase(m, total, acc, top, rate, MAYBE_EMPTY: tl.constexpr):
    """Move the running state to the maximum `top` [R] and return it with its base-2 exponent."""
    new_m = tl.maximum(m, top)
    base = new_m * rate
    if MAYBE_EMPTY:
        # A tile in front of a row's window leaves its maximum at -inf: keep differences finite.
        base = tl.where(new_m == float("-inf"), 0.0, base)
    alpha = tl.exp2(m * rate - base)
    return new_m, total * alpha, acc * alpha[:, None], base


@triton.jit
def _load_part(rows, table_row, head_offset, stride, start, limit, D: tl.constexpr,
               S: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
               FRESH: tl.constexpr):  # fmt: skip
    """Load BLOCK_N tokens, those from `limit` on as zeros: of pages, or fresh rows of `stride`."""
    if FRESH:
        offs_n = start + tl.arange(0, BLOCK_N)
        offs_d = tl.arange(0, BLOCK_D)
        pointers = rows + offs_n.to(tl.int64)[:, None] * stride + offs_d[None, :]
        mask = (offs_n < limit)[:, None] & (offs_d < D)[None, :]
        return tl.load(pointers, mask=mask, other=0.0)
    return load_tile(rows, table_row, head_offset, stride, start, limit,
                     D, S, BLOCK_N, BLOCK_D, True, "")  # fmt: skip


@triton.jit
def attend_masked(q, k_rows, v_rows, table_row, head_offset, stride, begin, end, limit, position, m,
                  total, acc, rate, scale, softcap, window, D: tl.constexpr, S: tl.constexpr,
                  BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
                  FRESH: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
                  PRECISION: tl.constexpr):  # fmt: skip
    """Fold the tiles of [begin, end) that some row sees in part; keys from `limit` on are zero."""
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        k = _load_part(k_rows, table_row, head_offset, stride, start, limit, D, S, BLOCK_N,
                       BLOCK_D, FRESH)  # fmt: skip
        v = _load_part(v_rows, table_row, head_offset, stride, start, limit, D, S, BLOCK_N,
                       BLOCK_D, FRESH)  # fmt: skip
        scores = _scores(q, k, start, position, scale, softcap, window, BLOCK_N, True,
                         HAS_WINDOW, HAS_SOFTCAP, PRECISION)  # fmt: skip
        m, total, acc, base = _rebase(m, total, acc, tl.max(scores, axis=1), rate, HAS_WINDOW)
        p = tl.exp2(scores * rate - base[:, None])
        total += tl.sum(p, axis=1)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    return m, total, acc


@triton.jit
def _load_whole(rows, tiles, table_row, column, first, head_offset, stride, start,
                D: tl.constexpr, S: tl.constexpr, HKV: tl.constexpr, BLOCK_N: tl.constexpr,
                BLOCK_D: tl.constexpr, BULK: tl.constexpr, FRESH: tl.constexpr):  # fmt: skip
    """Load BLOCK_N tokens that all exist, by the copy engine if a tile lies inside one page.

    column, first: of pages the KV head and 0, of fresh rows where a head and a sequence begin.
    """
    if BULK:
        if FRESH:
            return tiles.load([first + start, column])
        page = tl.load(table_row + start // S)
        return tiles.load([(page * HKV + column) * S + start % S, 0])
    if FRESH:
        return _load_part(rows, table_row, head_offset, stride, start, start + BLOCK_N,
                          D, S, BLOCK_N, BLOCK_D, FRESH)  # fmt: skip
    return load_tile(rows, table_row, head_offset, stride, start, start + BLOCK_N,
                     D, S, BLOCK_N, BLOCK_D, False, "")  # fmt: skip


@triton.jit
def attend_whole(q, k_rows, v_rows, k_tiles, v_tiles, table_row, k_column, v_column, first,
                 head_offset, stride, begin, end, position, m, total, acc, rate, scale, softcap,
                 D: tl.constexpr, S: tl.constexpr, HKV: tl.constexpr, BLOCK_N: tl.constexpr,
                 BLOCK_D: tl.constexpr, STAGES: tl.constexpr, BULK: tl.constexpr,
                 FRESH: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """Fold the tiles of [begin, end) that every row sees whole.

    Page ids and the tiles that they name are two levels of loads: of 5 stages, 3 tiles are held.
    """
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        k = _load_whole(k_rows, k_tiles, table_row, k_column, first, head_offset, stride, start,
                        D, S, HKV, BLOCK_N, BLOCK_D, BULK, FRESH)  # fmt: skip
        scores = _scores(q, k, start, position, scale, softcap, 0, BLOCK_N, False, False,
                         HAS_SOFTCAP, PRECISION)  # fmt: skip
        m, total, acc, base = _rebase(m, total, acc, tl.max(scores, axis=1), rate, False)
        p = tl.exp2(scores * rate - base[:, None])
        v = _load_whole(v_rows, v_tiles, table_row, v_column, first, head_offset, stride, start,
                        D, S, HKV, BLOCK_N, BLOCK_D, BULK, FRESH)  # fmt: skip
        total += tl.sum(p, axis=1)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    return m, total, acc


@triton.jit
def attend_rounded_pages(q, q_low, q_scale, k_pages, v_pages, k_tiles, v_tiles, k_scales, v_scales,
                         table_row, head, page_stride, begin, end, position, m, total, acc, scale,
                         softcap, window, D: tl.constexpr, S: tl.constexpr, HKV: tl.constexpr,
                         BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
                         BULK: tl.constexpr, CHECKED: tl.constexpr, HAS_WINDOW: tl.constexpr,
                         HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Fold the tiles of [begin, end) of FP8 pages, as `fold_widened` does.

    Keys from `end` on count for nobody. Without CHECKED tiles are whole, and all rows see them.
    """
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        k, v, k_scale, v_scale = load_rounded(
            k_pages, v_pages, k_tiles, v_tiles, k_scales, v_scales, table_row, head, page_stride,
            start, end, D, S, HKV, BLOCK_N, BLOCK_D, BULK, "")  # fmt: skip
        key = start + tl.arange(0, BLOCK_N)
        visible = (key < end)[None, :] & (key[None, :] <= position[:, None])
        if CHECKED:
            v_scale = tl.where(key < end, v_scale, 0.0)
            if HAS_WINDOW:
                visible = visible & (key[None, :] > position[:, None] - window)
        m, total, acc = fold_widened(q, q_low, q_scale, k, v, k_scale, v_scale, visible, m, total,
                                     acc, scale, softcap, CHECKED, HAS_SOFTCAP,
                                     PRECISION)  # fmt: skip
    return m, total, acc
