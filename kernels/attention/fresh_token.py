"""Device functions of paged decode: the current token, from its projection to its slot.

`fresh` is what `FreshTokens.arguments` returns: positions, slots, cos, sin, q_norm, k_norm, eps.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from tokenbus.kernels.quantize import magnitude, page_number, scales_of_top


@triton.jit
def _normed(value, partner, norm, dims, partners, in_dims, eps, D: tl.constexpr):
    """Normalise whole heads [R, BLOCK_D], given a second time with their dims in another order."""
    scale = tl.rsqrt(tl.sum(value * value, axis=1) / D + eps)[:, None]
    weight = tl.load(norm + dims, mask=in_dims, other=0.0).to(tl.float32)
    weight_partner = tl.load(norm + partners, mask=in_dims, other=0.0).to(tl.float32)
    return value * scale * weight[None, :], partner * scale * weight_partner[None, :]


@triton.jit
def _turned(heads_at, live, position, norm, cos, sin, eps, D: tl.constexpr, BLOCK_D: tl.constexpr,
            ROT: tl.constexpr):  # fmt: skip
    """Load whole heads of a token, normalise and rotate them: [R, BLOCK_D] float32.

    heads_at: [R], where they begin. A dim is loaded beside the one that it turns with.
    """
    HALF: tl.constexpr = ROT // 2
    dims = tl.arange(0, BLOCK_D)
    in_dims = dims < D
    partners = tl.where(dims < HALF, dims + HALF, tl.where(dims < ROT, dims - HALF, dims))
    mask = live[:, None] & in_dims[None, :]
    value = tl.load(heads_at[:, None] + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    partner = tl.load(heads_at[:, None] + partners[None, :], mask=mask, other=0.0).to(tl.float32)
    if norm is not None:
        value, partner = _normed(value, partner, norm, dims, partners, in_dims, eps, D)
    if ROT > 0:
        # The second half of the table: both halves are equal, and some tables sign the first.
        at = position * ROT + HALF + tl.where(dims < HALF, dims, dims - HALF)
        turn_cos = tl.load(cos + at, mask=dims < ROT, other=1.0)
        turn_sin = tl.load(sin + at, mask=dims < ROT, other=0.0)
        turn_sin = tl.where(dims < HALF, -turn_sin, turn_sin)
        value = value * turn_cos[None, :] + partner * turn_sin[None, :]
    return value


@triton.jit
def load_queries(qkv, fresh, row, heads, live, HQ: tl.constexpr, HKV: tl.constexpr,
                 D: tl.constexpr, BLOCK_D: tl.constexpr, ROT: tl.constexpr):  # fmt: skip
    """Return queries of a row, rotated, [R, BLOCK_D] in the dtype of the projection."""
    positions, _, cos, sin, q_norm, _, eps = fresh
    token = qkv + row.to(tl.int64) * ((HQ + 2 * HKV) * D)
    query = _turned(token + heads * D, live, tl.load(positions + row), q_norm, cos, sin, eps, D,
                    BLOCK_D, ROT)  # fmt: skip
    return query.to(qkv.dtype.element_ty)


@triton.jit
def write_token(qkv, fresh, row, head, k_pages, v_pages, k_scales, v_scales, page_stride,
                HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, S: tl.constexpr,
                BLOCK_D: tl.constexpr, ROT: tl.constexpr):  # fmt: skip
    """Write the key and the value of a row and a head into their slot, rounded if with scales."""
    positions, slots, cos, sin, _, k_norm, eps = fresh
    token = qkv + row.to(tl.int64) * ((HQ + 2 * HKV) * D)
    slot = tl.load(slots + row)
    dims = tl.arange(0, BLOCK_D)
    in_dims = dims < D
    one = tl.zeros([1], tl.int32)
    key = _turned(token + (HQ + head) * D + one, one == 0, tl.load(positions + row), k_norm, cos,
                  sin, eps, D, BLOCK_D, ROT)  # fmt: skip
    key = tl.reshape(key, [BLOCK_D])
    value = tl.load(token + (HQ + HKV + head) * D + dims, mask=in_dims, other=0.0)
    base = slot // S * page_stride + head * (S * D)
    offset = slot % S
    k_at = k_pages + base + offset * D + dims
    if k_scales is None:
        tl.store(k_at, key.to(k_pages.dtype.element_ty), mask=in_dims)
        tl.store(v_pages + base + offset * D + dims, value, mask=in_dims)
    else:
        value = value.to(tl.float32)
        place = slot // S * (HKV * S) + head * S + offset
        scale, inverse = scales_of_top(tl.max(magnitude(key)))
        tl.store(k_scales + place, scale)
        tl.store(k_at, page_number(key, inverse), mask=in_dims)
        scale, inverse = scales_of_top(tl.max(magnitude(value)))
        tl.store(v_scales + place, scale)
        # A page has tokens of values innermost.
        tl.store(v_pages + base + offset + dims * S, page_number(value, inverse), mask=in_dims)
