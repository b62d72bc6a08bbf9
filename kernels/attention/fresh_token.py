"""Device functions of fresh decode: a token's heads, normalised and rotated."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _partners(dims, ROT: tl.constexpr):
    """Return the dim that each dim is rotated with."""
    HALF: tl.constexpr = ROT // 2
    return tl.where(dims < HALF, dims + HALF, tl.where(dims < ROT, dims - HALF, dims))


@triton.jit
def load_turn(cos, sin, position, dims, ROT: tl.constexpr):
    """Load what dims of a position are multiplied by, and their partners."""
    HALF: tl.constexpr = ROT // 2
    turn_cos = tl.full(dims.shape, 1.0, tl.float32)
    turn_sin = tl.zeros(dims.shape, tl.float32)
    if ROT > 0:
        # The second half of the table: both halves are equal, and some tables sign the first.
        at = position * ROT + HALF + tl.where(dims < HALF, dims, dims - HALF)
        turn_cos = tl.load(cos + at, mask=dims < ROT, other=1.0)
        turn_sin = tl.load(sin + at, mask=dims < ROT, other=0.0)
        turn_sin = tl.where(dims < HALF, -turn_sin, turn_sin)
    return turn_cos, turn_sin


@triton.jit
def load_norm(norm, dims, in_dims, ROT: tl.constexpr):
    """Load the norm's weights of dims and of their partners; ones without a norm."""
    weight = tl.full(dims.shape, 1.0, tl.float32)
    of_partners = weight
    if norm is not None:
        weight = tl.load(norm + dims, mask=in_dims, other=0.0).to(tl.float32)
        partners = norm + _partners(dims, ROT)
        of_partners = tl.load(partners, mask=in_dims, other=0.0).to(tl.float32)
    return weight, of_partners


@triton.jit
def turned(heads_at, live, dims, in_dims, turn, norm, eps, D: tl.constexpr, ROT: tl.constexpr,
            HAS_NORM: tl.constexpr):  # fmt: skip
    """Load whole heads of a token, normalise and rotate them: [R, BLOCK_D] float32.

    heads_at: [R], where they begin. A dim is loaded beside the one that it is rotated with.
    """
    mask = live[:, None] & in_dims[None, :]
    value = tl.load(heads_at[:, None] + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    if ROT == 0:
        partner = tl.zeros_like(value)
    else:
        at = heads_at[:, None] + _partners(dims, ROT)[None, :]
        partner = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(value * value, axis=1) / D + eps)[:, None]
        value *= scale * norm[0][None, :]
        partner *= scale * norm[1][None, :]
    return value * turn[0][None, :] + partner * turn[1][None, :]
