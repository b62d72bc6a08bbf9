"""Device functions over FP8 pages: products in FP8 for few query rows, widened tiles for many.

A number of e4m3 has 4 digits. A query or a weight is split in two of them, which together have as
many as bf16: columns of a product that would be padding otherwise.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from tokenbus.kernels.attention.decode_tile import LOG2E, bend_scores
from tokenbus.kernels.quantize import magnitude, nearest_fp8, nearest_number

# The largest number that is split in two of e4m3, and how often the second is larger than it
# stands for.
_TOP = tl.constexpr(256.0)
_LOG2_TOP = tl.constexpr(8.0)
_LOW = tl.constexpr(16.0)
_TINY = tl.constexpr(1e-20)
# 448, the largest number of a value, as a power of two.
_LOG2_MAX = tl.constexpr(8.807354922057604)
# 2^-60 as a whole number: what a tile's largest query counts as at least.
_LEAST = tl.constexpr((127 - 60) << 23)


@triton.jit
def _halves(value, is_low):
    """Round fp32 of up to 256 to e4m3, or 16 times what rounding it leaves."""
    rest = (value - nearest_fp8(value).to(tl.float32)) * _LOW
    return nearest_fp8(tl.where(is_low, rest, value))


@triton.jit
def _split_columns(value, N: tl.constexpr, G: tl.constexpr):
    """[N, G] fp32 -> [N, 2 G] e4m3, the halves of a number side by side."""
    both = tl.reshape(tl.join(value, value), [N, 2 * G])
    return _halves(both, (tl.arange(0, 2 * G) % 2 == 1)[None, :])


@triton.jit
def _join_columns(value, N: tl.constexpr, G: tl.constexpr):
    """[N, 2 G] fp32, sums of halves side by side -> [N, G]."""
    high, low = tl.split(tl.reshape(value, [N, G, 2]))
    return high + low * (1.0 / _LOW)


@triton.jit
def _split_queries(q, G: tl.constexpr):
    """q: [2 G, BLOCK_D], each row twice -> its halves in e4m3 and the scales [2 G]."""
    q = q.to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(q), axis=1), _TINY) / _TOP
    is_low = (tl.arange(0, 2 * G) % 2 == 1)[:, None]
    # NaN and infinities make the scale NaN.
    return _halves(q / scale[:, None], is_low), scale + tl.sum(q - q, axis=1)


@triton.jit
def load_rounded(k_pages, v_pages, k_tiles, v_tiles, k_scales, v_scales, table_row, head,
                  page_stride, start, end, D: tl.constexpr, S: tl.constexpr, HKV: tl.constexpr,
                  BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BULK: tl.constexpr,
                  EVICT: tl.constexpr):  # fmt: skip
    """Load a tile: keys [BLOCK_N, BLOCK_D], values [BLOCK_D, BLOCK_N] and the scales of both.

    Tokens beyond `end` are what memory holds, finite always; their scales may be NaN.
    """
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    if S % BLOCK_N == 0:
        at = tl.minimum(start, end - 1) // BLOCK_N
        page = tl.load(table_row + at // (S // BLOCK_N))
        inside = at % (S // BLOCK_N) * BLOCK_N
        tile = page.to(tl.int64) * (HKV * S) + head * S + inside + offs_n
        if BULK:
            block = page * HKV + head
            k = k_tiles.load([block * S + inside, 0])
            v = v_tiles.load([block * D, inside])
        else:
            base = page.to(tl.int64) * page_stride + head * (S * D)
            k_at = base + (inside + offs_n)[:, None] * D + offs_d[None, :]
            v_at = base + offs_d[:, None] * S + (inside + offs_n)[None, :]
            if BLOCK_D != D:
                k = tl.load(k_pages + k_at, mask=(offs_d < D)[None, :], other=0.0,
                            eviction_policy=EVICT)  # fmt: skip
                v = tl.load(v_pages + v_at, mask=(offs_d < D)[:, None], other=0.0,
                            eviction_policy=EVICT)  # fmt: skip
            else:
                k = tl.load(k_pages + k_at, eviction_policy=EVICT)
                v = tl.load(v_pages + v_at, eviction_policy=EVICT)
    else:
        token = tl.minimum(start + offs_n, end - 1)
        page = tl.load(table_row + token // S).to(tl.int64)
        tile = page * (HKV * S) + head * S + token % S
        base = page * page_stride + head * (S * D) + token % S * D
        v_base = page * page_stride + head * (S * D) + token % S
        some = offs_d < D
        k = tl.load(k_pages + base[:, None] + offs_d[None, :], mask=some[None, :], other=0.0)
        v = tl.load(v_pages + v_base[None, :] + offs_d[:, None] * S, mask=some[:, None], other=0.0)
    return k, v, tl.load(k_scales + tile), tl.load(v_scales + tile)


@triton.jit
def fold_rounded(q, q_scale, k, v, k_scale, v_scale, m, sums, acc, start, end, first_visible, scale,
                 softcap, G: tl.constexpr, BLOCK_N: tl.constexpr, HAS_WINDOW: tl.constexpr,
                 HAS_SOFTCAP: tl.constexpr):  # fmt: skip
    """Fold one tile into the running maximum [G], the sums [BLOCK_N, G] and acc [BLOCK_D, 2 G]."""
    scores = _join_columns(tl.dot(k, tl.trans(q)) * q_scale[None, :], BLOCK_N, G)
    scores = bend_scores(scores * k_scale[:, None], scale, softcap, HAS_SOFTCAP)
    token = start + tl.arange(0, BLOCK_N)
    visible = token < end
    if HAS_WINDOW:
        visible = visible & (token >= first_visible)
    # With the logarithm of its value's scale a score tells how large its product gets.
    scores = tl.where(visible[:, None], scores + tl.log2(v_scale)[:, None], float("-inf"))
    new_m = tl.maximum(m, tl.max(scores, axis=0))
    # A tile in front of the window leaves every score at -inf: keep the difference finite.
    base = tl.where(new_m == float("-inf"), 0.0, new_m)
    alpha = tl.exp2(m - base)
    p = tl.exp2(scores - (base - _LOG2_TOP)[None, :])
    sums = sums * alpha[None, :] + p * tl.where(visible, 1.0 / v_scale, 0.0)[:, None]
    both = tl.reshape(tl.join(alpha, alpha), [2 * G])
    # Added up in fp32: the matrix unit keeps 14 digits of a sum in FP8.
    acc = acc * both[None, :] + tl.dot(v, _split_columns(p, BLOCK_N, G))
    return new_m, sums, acc


@triton.jit
def close_rounded(m, sums, acc, G: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the normalised output [G, BLOCK_D] and the base-2 log-sum-exp [G]."""
    total = tl.sum(sums, axis=0)
    out = _join_columns(acc, BLOCK_D, G) / tl.where(total > 0.0, total, 1.0)[None, :]
    return tl.trans(out), m + tl.log2(total) - _LOG2_TOP


@triton.jit
def attend_rounded(q, k_pages, v_pages, k_scales, v_scales, table_row, head, page_stride, begin,
                   end, first_visible, scale, softcap, G: tl.constexpr, D: tl.constexpr,
                   S: tl.constexpr, HKV: tl.constexpr, BLOCK_N: tl.constexpr,
                   BLOCK_D: tl.constexpr, STAGES: tl.constexpr, HAS_WINDOW: tl.constexpr,
                   HAS_SOFTCAP: tl.constexpr):  # fmt: skip
    """Attend G query rows, each given twice, [2 G, BLOCK_D], over tokens [begin, end).

    Keys and then values are the left operands of products in FP8, read as they lie in memory: the
    matrix unit's 64 rows are tokens and dims, its columns the two halves of each query and of its
    weights. Returns the normalised output [G, BLOCK_D] and the base-2 log-sum-exp [G].
    """
    q, q_scale = _split_queries(q, G)
    m = tl.full([G], float("-inf"), tl.float32)
    sums = tl.zeros([BLOCK_N, G], tl.float32)
    acc = tl.zeros([BLOCK_D, 2 * G], tl.float32)
    for offset in tl.range(0, end - begin, BLOCK_N, num_stages=STAGES):
        start = begin + offset
        k, v, k_scale, v_scale = load_rounded(
            k_pages, v_pages, k_pages, v_pages, k_scales, v_scales, table_row, head, page_stride,
            start, end, D, S, HKV, BLOCK_N, BLOCK_D, False, "evict_first")  # fmt: skip
        m, sums, acc = fold_rounded(
            q, q_scale, k, v, k_scale, v_scale, m, sums, acc, start, end, first_visible, scale,
            softcap, G, BLOCK_N, HAS_WINDOW, HAS_SOFTCAP)  # fmt: skip
    return close_rounded(m, sums, acc, G, BLOCK_D)


@triton.jit
def split_tile(q):
    """Split query rows [R, BLOCK_D] into high and low numbers of e4m3, and the scale of both.

    Numbers of bf16 are their sum exactly, down to 2^-17 of the largest of the tile. The scale is a
    power of two, so that a row becomes the same beside other rows; NaN in a row makes it NaN.
    Queries of fp32 stay as they are.
    """
    high, low = q, q
    scale = tl.full([], 1.0, tl.float32)
    if q.dtype != tl.float32:
        q = q.to(tl.float32)
        top = tl.maximum(tl.max(tl.max(magnitude(q), axis=1), axis=0), _LEAST)
        # The power of two below the largest number comes to stand at 128.
        scale = ((top & 0x7F800000) - (7 << 23)).to(tl.float32, bitcast=True)
        number = top.to(tl.float32, bitcast=True)
        value = q * (1.0 / scale)
        nearest = nearest_number(value, 1.0)
        high = nearest.to(tl.float8e4nv)
        low = nearest_fp8(value - nearest)
        scale += number - number
    return high, low, scale


@triton.jit
def fold_widened(q, q_low, q_scale, k, v, k_scale, v_scale, visible, m, total, acc, scale, softcap,
                 MASKED: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """Fold a tile of FP8 pages into many rows: m, total [R] and acc [R, BLOCK_D].

    Keys are multiplied as they are by both parts of the queries (see `split_tile`), values are
    widened. m is of scores as they are summed, see `logits_of`. Weights and their sums are 448
    times what they stand for, for which half precision has room. visible: [R or 1, BLOCK_N], what
    `MASKED` rows see.
    """
    WIDE: tl.constexpr = tl.float32 if q.dtype == tl.float32 else tl.float16
    if q.dtype == tl.float32:
        scores = tl.dot(q, tl.trans(k.to(tl.float32)), input_precision=PRECISION)
    else:
        scores = tl.dot(q_low, tl.trans(k), tl.dot(q, tl.trans(k)))
    scores *= k_scale[None, :]
    rate = q_scale * scale * LOG2E
    if HAS_SOFTCAP:
        scores = bend_scores(scores * q_scale, scale, softcap, True)
        rate = 1.0
    if MASKED:
        scores = tl.where(visible, scores, float("-inf"))
    new_m = tl.maximum(m, tl.max(scores, axis=1))
    base = new_m * rate
    if MASKED:
        base = tl.where(new_m == float("-inf"), 0.0, base)
    alpha = tl.exp2(m * rate - base)
    p = tl.exp2(scores * rate - (base - _LOG2_MAX)[:, None])
    total = total * alpha + tl.sum(p, axis=1)
    p *= v_scale[None, :]
    acc = tl.dot(p.to(WIDE), tl.trans(v.to(WIDE)), acc * alpha[:, None],
                 input_precision=PRECISION)  # fmt: skip
    return new_m, total, acc


@triton.jit
def logits_of(m, q_scale, scale, HAS_SOFTCAP: tl.constexpr):
    """Return base-2 logits by which weights of `fold_widened` are no larger than one."""
    if HAS_SOFTCAP:
        return m - _LOG2_MAX
    return m * (q_scale * scale * LOG2E) - _LOG2_MAX


@triton.jit
def attend_widened(q, k_pages, v_pages, k_scales, v_scales, table_row, head, page_stride, begin,
                   end, row_ends, first_visible, scale, softcap, R: tl.constexpr, D: tl.constexpr,
                   S: tl.constexpr, HKV: tl.constexpr, BLOCK_N: tl.constexpr,
                   BLOCK_D: tl.constexpr, STAGES: tl.constexpr, HAS_WINDOW: tl.constexpr,
                   HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Attend many query rows [R, BLOCK_D] over tokens [begin, end) of FP8 pages.

    A tile's values are widened once for all rows, which costs less than splitting the weights of
    all. row_ends: where each row's own tokens end, [R], and `first_visible` where its window
    begins; None if all see all of them. Returns the normalised output [R, BLOCK_D] and the base-2
    log-sum-exp [R].
    """
    q, q_low, q_scale = split_tile(q)
    m = tl.full([R], float("-inf"), tl.float32)
    total = tl.zeros([R], tl.float32)
    acc = tl.zeros([R, BLOCK_D], tl.float32)
    BY_ROW: tl.constexpr = row_ends is not None
    MASKED: tl.constexpr = BY_ROW or S % BLOCK_N != 0
    for offset in tl.range(0, end - begin, BLOCK_N, num_stages=STAGES):
        start = begin + offset
        k, v, k_scale, v_scale = load_rounded(
            k_pages, v_pages, k_pages, v_pages, k_scales, v_scales, table_row, head, page_stride,
            start, end, D, S, HKV, BLOCK_N, BLOCK_D, False, "evict_last")  # fmt: skip
        token = start + tl.arange(0, BLOCK_N)
        visible = (token < end)[None, :]
        if MASKED:
            v_scale = tl.where(token < end, v_scale, 0.0)
        if BY_ROW:
            visible &= token[None, :] < row_ends[:, None]
            if HAS_WINDOW:
                visible = visible & (token[None, :] >= first_visible[:, None])
        m, total, acc = fold_widened(q, q_low, q_scale, k, v, k_scale, v_scale, visible, m,
                                     total, acc, scale, softcap, MASKED, HAS_SOFTCAP,
                                     PRECISION)  # fmt: skip
    out = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    return out, logits_of(m, q_scale, scale, HAS_SOFTCAP) + tl.log2(total)
