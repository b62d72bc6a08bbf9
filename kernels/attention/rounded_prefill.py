"""Device functions of prefill over FP8 pages: both products in FP8, nothing widened."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from tokenbus.kernels.attention.decode_tile import LOG2E, bend_scores
from tokenbus.kernels.attention.rounded_tile import LOG2_TOP, SPLIT_TOP, load_rounded
from tokenbus.kernels.quantize import nearest_fp8


@triton.jit
def split_rows(value):
    """Split fp32 of up to 256 in two numbers of e4m3 that add up to it."""
    high = nearest_fp8(value)
    return high, nearest_fp8(value - high.to(tl.float32))


@triton.jit
def attend_rounded_rows(q_high, q_low, q_scale, k_pages, v_pages, k_tiles, v_tiles, k_scales,
                        v_scales, table_row, head, page_stride, begin, end, limit, position, m,
                        total, acc, scale, softcap, window, D: tl.constexpr, S: tl.constexpr,
                        HKV: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
                        STAGES: tl.constexpr, BULK: tl.constexpr, MASKED: tl.constexpr,
                        HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr):  # fmt: skip
    """Fold the tiles of [begin, end) into m, total [BLOCK_M] and acc [BLOCK_M, BLOCK_D].

    m bounds base-2 logits to which those of the values' scales are added, acc is 256 times and
    total 256 times what they stand for. `limit`: tokens of the sequence.
    """
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        k, v, k_scale, v_scale = load_rounded(
            k_pages, v_pages, k_tiles, v_tiles, k_scales, v_scales, table_row, head, page_stride,
            start, limit, D, S, HKV, BLOCK_N, BLOCK_D, BULK, "")  # fmt: skip
        key = start + tl.arange(0, BLOCK_N)
        weigh = 1.0 / v_scale
        shift = tl.log2(v_scale)
        if MASKED:
            weigh = tl.where(key < limit, weigh, 0.0)
            shift = tl.where(key < limit, shift, 0.0)
        scores = tl.dot(q_low, tl.trans(k))
        scores = tl.dot(q_high, tl.trans(k), scores)
        if HAS_SOFTCAP:
            scores = bend_scores(scores * (k_scale * q_scale)[None, :], scale, softcap, True)
            scores = scores + shift[None, :]
        else:
            scores = scores * (k_scale * (q_scale * scale * LOG2E))[None, :] + shift[None, :]
        if MASKED:
            visible = key[None, :] <= position[:, None]
            if HAS_WINDOW:
                visible = visible & (key[None, :] > position[:, None] - window)
            scores = tl.where(visible, scores, float("-inf"))
        new_m = tl.maximum(m, tl.max(scores, axis=1))
        base = new_m
        if MASKED:
            # A tile in front of a row's window leaves its maximum at -inf.
            base = tl.where(new_m == float("-inf"), 0.0, new_m)
        alpha = tl.exp2(m - base)
        m = new_m
        p = tl.exp2(scores - (base - LOG2_TOP)[:, None])
        total = total * alpha + tl.sum(p * weigh[None, :], axis=1)
        high, low = split_rows(p)
        acc = tl.dot(high, tl.trans(v), acc * alpha[:, None])
        acc = tl.dot(low, tl.trans(v), acc)
    return m, total, acc
