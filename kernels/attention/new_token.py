"""Device functions of paged decode over FP8 pages: the token of a step, from its projection on.

Its query is rotated where it is used. Its key and value are rounded, written to their pages and
attended over from registers, so that no launch before this one has to write them.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from tokenbus.kernels.attention.decode_tile import bend_scores
from tokenbus.kernels.quantize import finite_fp8, scale_of


@triton.jit
def rotated_heads(qkv, bias, norm, cos, sin, rows, positions, heads, valid, eps, HQ: tl.constexpr,
                  HKV: tl.constexpr, D: tl.constexpr, ROT: tl.constexpr, BLOCK_D: tl.constexpr,
                  HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr,
                  ADD_ONE: tl.constexpr):  # fmt: skip
    """Load heads [R] of rows [R] or [1], normalise and rotate them; fp32 [R, BLOCK_D]."""
    HALF: tl.constexpr = max(ROT // 2, 1)
    dims = tl.arange(0, BLOCK_D)
    turns = dims < ROT
    mask = valid[:, None] & (dims < D)[None, :]
    columns = heads[:, None] * D
    source = qkv + rows.to(tl.int64)[:, None] * ((HQ + 2 * HKV) * D) + columns
    value = tl.load(source + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    if ROT > 0:
        # The other number of each pair, the table's second half: some tables sign the first.
        other = tl.where(turns, (dims + HALF) % ROT, dims)
        pair = tl.load(source + other[None, :], mask=mask, other=0.0).to(tl.float32)
        at = positions[:, None] * ROT + HALF + (dims % HALF)[None, :]
        c = tl.load(cos + at, mask=turns[None, :], other=1.0)
        s = tl.load(sin + at, mask=turns[None, :], other=0.0)
    if HAS_BIAS:
        value += tl.load(bias + columns + dims[None, :], mask=mask, other=0.0).to(tl.float32)
        if ROT > 0:
            pair += tl.load(bias + columns + other[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        factor = tl.rsqrt(tl.sum(value * value, axis=1) / D + eps)[:, None]
        weight = tl.load(norm + dims, mask=dims < D, other=0.0).to(tl.float32)
        value = value * factor * (weight + 1.0 if ADD_ONE else weight)[None, :]
        if ROT > 0:
            weight = tl.load(norm + other, mask=dims < D, other=0.0).to(tl.float32)
            pair = pair * factor * (weight + 1.0 if ADD_ONE else weight)[None, :]
    if ROT > 0:
        value = value * c + pair * tl.where(dims < HALF, -1.0, 1.0)[None, :] * s
    return value


@triton.jit
def write_token(key, value, slot, is_newest, head, k_pages, v_pages, k_scales, v_scales,
                page_stride, HKV: tl.constexpr, D: tl.constexpr, S: tl.constexpr,
                BLOCK_D: tl.constexpr):  # fmt: skip
    """Round key and value [1, BLOCK_D] into their slot, and return what they then stand for.

    is_newest: 1 in the program that has the last of a sequence's tokens, else 0: nothing is stored.
    """
    dims = tl.arange(0, BLOCK_D)[None, :]
    # NaN and infinities make a scale NaN.
    k_scale = scale_of(tl.max(tl.abs(key), axis=1)) + tl.sum(key - key, axis=1)
    v_scale = scale_of(tl.max(tl.abs(value), axis=1)) + tl.sum(value - value, axis=1)
    k = finite_fp8(key / k_scale[:, None])
    v = finite_fp8(value / v_scale[:, None])
    block = slot // S * page_stride + head * (S * D)
    mask = dims < is_newest * D
    tl.store(k_pages + block + slot % S * D + dims, k, mask=mask)
    tl.store(v_pages + block + slot % S + dims * S, v, mask=mask)
    place = slot // S * (HKV * S) + head * S + slot % S + tl.arange(0, 1)
    stored = tl.arange(0, 1) < is_newest
    tl.store(k_scales + place, k_scale, mask=stored)
    tl.store(v_scales + place, v_scale, mask=stored)
    return k.to(tl.float32) * k_scale[:, None], v.to(tl.float32) * v_scale[:, None]


@triton.jit
def add_token(result, lse, q, key, value, is_newest, scale, softcap, G: tl.constexpr,
              HAS_SOFTCAP: tl.constexpr):  # fmt: skip
    """Fold a token into the result [G, BLOCK_D] and lse [G] of the tokens before it.

    q: [2 G, BLOCK_D], every row twice; key, value: [1, BLOCK_D].
    """
    score, _ = tl.split(tl.reshape(tl.sum(q * key, axis=1), [G, 2]))
    score = bend_scores(score, scale, softcap, HAS_SOFTCAP)
    score = tl.where(is_newest > 0, score, float("-inf"))
    top = tl.maximum(lse, score)
    base = tl.where(top == float("-inf"), 0.0, top)
    before = tl.exp2(lse - base)
    weight = tl.exp2(score - base)
    total = before + weight
    share = 1.0 / tl.where(total > 0.0, total, 1.0)
    result = result * (before * share)[:, None] + value * (weight * share)[:, None]
    return result, base + tl.log2(total)
