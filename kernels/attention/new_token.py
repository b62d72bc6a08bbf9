"""The tokens of a decode step over FP8 pages, from their projection on.

Its query is rotated where it is used. Its key and value are rounded, written to their pages and
attended over from registers, so that no launch before this one has to write them.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from tokenbus.kernels.attention.decode_tile import bend_scores
from tokenbus.kernels.launch import require, require_contiguous
from tokenbus.kernels.quantize import finite_fp8, scale_of

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.attention.work_list import DecodeWork


@dataclass(frozen=True, slots=True)
class NewTokens:
    """The tokens of a step as their projection left them, for FP8 pages; see `qkv_rope`.

    qkv: [N, (Hq + 2 Hkv) * D], contiguous; positions, slots: [N] int64. cos, sin: [max_len, R]
    float32 or None; bias: [(Hq + 2 Hkv) * D]; q_norm, k_norm: [D], both or none.
    """

    qkv: Tensor
    positions: Tensor
    slots: Tensor
    cos: Tensor | None
    sin: Tensor | None
    bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    eps: float = 1e-6
    norm_add_one: bool = False


def check_new_tokens(new: NewTokens, work: DecodeWork, k_scales: Tensor | None) -> None:
    """Refuse tokens whose rows are not as wide as their heads need, or with plain pages."""
    require_contiguous(qkv=new.qkv, cos=new.cos, sin=new.sin)
    width = (work.num_heads + 2 * work.num_kv_heads) * work.head_dim
    require(new.qkv.shape[1] == width, f"qkv is {new.qkv.shape[1]} wide, the heads need {width}")
    require((new.q_norm is None) == (new.k_norm is None), "q_norm and k_norm come together")
    require((new.cos is None) == (new.sin is None), "cos and sin come together")
    require(k_scales is not None, "new tokens are written to FP8 pages alone")


def new_token_arguments(new: NewTokens | None) -> dict[str, Any]:
    """Return the kernel's arguments that tell of new tokens."""
    none = dict.fromkeys(("bias", "q_norm", "k_norm", "cos", "sin", "positions", "slots"))
    flags = {"HAS_BIAS": False, "HAS_NORM": False, "ADD_ONE": False}
    if new is None:
        return {**none, **flags, "eps": 0.0, "ROT": 0, "NEW": False}
    return {
        **{name: getattr(new, name) for name in none},
        "eps": new.eps,
        "ROT": 0 if new.cos is None else new.cos.shape[1],
        "NEW": True,
        "HAS_BIAS": new.bias is not None,
        "HAS_NORM": new.q_norm is not None,
        "ADD_ONE": new.norm_add_one,
    }


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
