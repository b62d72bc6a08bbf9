"""QK-norm, rotary positions and the write of K and V into their pages, in one launch."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    next_power_of_2,
    release_successor,
    require,
    require_contiguous,
    wait_for_inputs,
)
from tokenbus.kernels.page_scales import check_page_dtypes
from tokenbus.kernels.quantize import (
    magnitude,
    nearest_number,
    page_bytes,
    page_number,
    scales_of_top,
)
from tokenbus.kernels.value_pages import write_values

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def _load_part(qkv, bias, row, heads, live, dims, in_dims, D: tl.constexpr,
               HAS_BIAS: tl.constexpr):  # fmt: skip
    """Load some dims of some heads in fp32, the projection's bias added."""
    mask = live[:, None] & in_dims[None, :]
    value = tl.load(qkv + row + heads[:, None] * D + dims[None, :], mask=mask, other=0.0)
    value = value.to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + heads[:, None] * D + dims[None, :], mask=mask, other=0.0)
    return value


@triton.jit
def _norm_weight(q_norm, k_norm, is_q, is_v, dims, in_dims, ADD_ONE: tl.constexpr):
    """Pick the norm weight of each head: q's, k's, or 1 for v."""
    wq = tl.load(q_norm + dims, mask=in_dims, other=0.0).to(tl.float32)
    wk = tl.load(k_norm + dims, mask=in_dims, other=0.0).to(tl.float32)
    weight = tl.where(is_q[:, None], wq[None, :], wk[None, :])
    if ADD_ONE:
        weight += 1.0
    return tl.where(is_v[:, None], 1.0, weight)


@triton.jit
def _store_plain(value, q_out, k_pages, v_pages, token, page_base, offset, heads, live, dims,
                 in_dims, HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, S: tl.constexpr,
                 IS_ROUNDED: tl.constexpr):  # fmt: skip
    """Store some dims of some heads: q to the output, k and v into their slot if not rounded."""
    mask = live[:, None] & in_dims[None, :]
    plain = value.to(q_out.dtype.element_ty)
    tl.store(q_out + token * (HQ * D) + heads[:, None] * D + dims[None, :], plain,
             mask=mask & (heads < HQ)[:, None])  # fmt: skip
    if not IS_ROUNDED:
        is_k = ((heads >= HQ) & (heads < HQ + HKV))[:, None]
        is_v = (heads >= HQ + HKV)[:, None]
        place = page_base + ((heads - HQ) % HKV)[:, None] * (S * D) + offset * D + dims[None, :]
        tl.store(k_pages + place, plain, mask=mask & is_k)
        tl.store(v_pages + place, plain, mask=mask & is_v)


@triton.jit
def _store_rounded(value, scale, inverse, k_pages, v_pages, back, page_base, offset, heads, live,
                   dims, in_dims, HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr,
                   S: tl.constexpr):  # fmt: skip
    """Round some dims of some heads to a scale each, [HEADS], and store k and v into their slot.

    A page has tokens of v innermost. What k stands for goes to the row `back` too, if there is one.
    """
    mask = live[:, None] & in_dims[None, :]
    is_k = mask & ((heads >= HQ) & (heads < HQ + HKV))[:, None]
    is_v = mask & (heads >= HQ + HKV)[:, None]
    block = page_base + ((heads - HQ) % HKV)[:, None] * (S * D)
    if back is None:
        rounded = page_number(value, inverse[:, None])
    else:
        number = nearest_number(value, inverse[:, None])
        rounded = page_bytes(number)
        plain = (number * scale[:, None]).to(back.dtype.element_ty)
        tl.store(back + heads[:, None] * D + dims[None, :], plain, mask=is_k)
    tl.store(k_pages + block + offset * D + dims[None, :], rounded, mask=is_k)
    tl.store(v_pages + block + offset + dims[None, :] * S, rounded, mask=is_v)


@triton.jit
def _store_scales(scales, k_scales, v_scales, slot_base, heads, live, HQ: tl.constexpr,
                  HKV: tl.constexpr, S: tl.constexpr):  # fmt: skip
    """Store the scales of k and v heads into their slot."""
    place = slot_base + (heads - HQ) % HKV * S
    tl.store(k_scales + place, scales, mask=live & (heads >= HQ) & (heads < HQ + HKV))
    tl.store(v_scales + place, scales, mask=live & (heads >= HQ + HKV))


@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def _qkv_rope_kernel(
    qkv, bias, q_norm, k_norm, cos, sin, positions, slots, q_out, k_pages, v_pages, k_scales,
    v_scales, page_stride, rope_stride, eps, HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr,
    S: tl.constexpr,
    ROT: tl.constexpr, HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, ADD_ONE: tl.constexpr,
    WRITE_BACK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = ROT // 2
    release_successor(PDL)
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    # Values that are written back are another launch's.
    live = heads < (HQ + HKV if WRITE_BACK else HQ + 2 * HKV)
    is_q = heads < HQ
    is_v = heads >= HQ + HKV
    half = tl.arange(0, BLOCK_HALF)
    in_half = half < HALF
    rest = ROT + tl.arange(0, BLOCK_REST)
    in_rest = rest < D
    row = token * ((HQ + 2 * HKV) * D)
    wait_for_inputs(PDL)
    slot = tl.load(slots + token)
    position = tl.load(positions + token)
    a = _load_part(qkv, bias, row, heads, live, half, in_half, D, HAS_BIAS)
    b = _load_part(qkv, bias, row, heads, live, half + HALF, in_half, D, HAS_BIAS)
    squares = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)
    if ROT < D:
        c = _load_part(qkv, bias, row, heads, live, rest, in_rest, D, HAS_BIAS)
        squares += tl.sum(c * c, axis=1)
    if HAS_NORM:
        scale = tl.where(is_v, 1.0, tl.rsqrt(squares / D + eps))[:, None]
        a = a * scale * _norm_weight(q_norm, k_norm, is_q, is_v, half, in_half, ADD_ONE)
        b = b * scale * _norm_weight(q_norm, k_norm, is_q, is_v, half + HALF, in_half, ADD_ONE)
        if ROT < D:
            c = c * scale * _norm_weight(q_norm, k_norm, is_q, is_v, rest, in_rest, ADD_ONE)
    page_base = slot // S * page_stride
    offset = slot % S
    IS_ROUNDED: tl.constexpr = k_scales is not None
    if ROT > 0:
        # The second half of the table: both halves are equal, and some tables sign the first.
        at = position * rope_stride + HALF + half
        turn_cos = tl.load(cos + at, mask=in_half, other=1.0)[None, :]
        turn_sin = tl.load(sin + at, mask=in_half, other=0.0)[None, :]
        turn_cos = tl.where(is_v[:, None], 1.0, turn_cos)
        turn_sin = tl.where(is_v[:, None], 0.0, turn_sin)
        turned_a = a * turn_cos - b * turn_sin
        turned_b = b * turn_cos + a * turn_sin
        _store_plain(turned_a, q_out, k_pages, v_pages, token, page_base, offset, heads, live, half,
                     in_half, HQ, HKV, D, S, IS_ROUNDED)  # fmt: skip
        _store_plain(turned_b, q_out, k_pages, v_pages, token, page_base, offset, heads, live,
                     half + HALF, in_half, HQ, HKV, D, S, IS_ROUNDED)  # fmt: skip
    if ROT < D:
        _store_plain(c, q_out, k_pages, v_pages, token, page_base, offset, heads, live, rest,
                     in_rest, HQ, HKV, D, S, IS_ROUNDED)  # fmt: skip
    # Most programs have queries alone, which need no scales.
    if IS_ROUNDED and (tl.program_id(1) + 1) * HEADS > HQ:
        tops = tl.zeros([HEADS], tl.int32)
        if ROT > 0:
            tops = tl.maximum(tl.max(magnitude(turned_a), axis=1),
                              tl.max(magnitude(turned_b), axis=1))  # fmt: skip
        if ROT < D:
            tops = tl.maximum(tops, tl.max(magnitude(c), axis=1))
        scales, inverse = scales_of_top(tops)
        _store_scales(scales, k_scales, v_scales, page_base // D + offset, heads, live, HQ, HKV,
                      S)  # fmt: skip
        back = None
        if WRITE_BACK:
            back = qkv + row
        if ROT > 0:
            _store_rounded(turned_a, scales, inverse, k_pages, v_pages, back, page_base, offset,
                           heads, live, half, in_half, HQ, HKV, D, S)  # fmt: skip
            _store_rounded(turned_b, scales, inverse, k_pages, v_pages, back, page_base, offset,
                           heads, live, half + HALF, in_half, HQ, HKV, D, S)  # fmt: skip
        if ROT < D:
            _store_rounded(c, scales, inverse, k_pages, v_pages, back, page_base, offset, heads,
                           live, rest, in_rest, HQ, HKV, D, S)  # fmt: skip


def _check(qkv: Tensor, k_pages: Tensor, num_heads: int, cos: Tensor | None) -> None:
    """Refuse shapes that the kernel would read or write wrongly."""
    _, num_kv_heads, page_size, head_dim = k_pages.shape
    width = (num_heads + 2 * num_kv_heads) * head_dim
    require(qkv.shape[1] == width, f"qkv is {qkv.shape[1]} wide, the heads need {width}")
    require(next_power_of_2(page_size) == page_size, f"page size {page_size}")
    rot_dim = 0 if cos is None else cos.shape[-1]
    require(rot_dim <= head_dim and rot_dim % 2 == 0, f"rotary dims {rot_dim} of {head_dim}")


def qkv_rope(
    qkv: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    *,
    num_heads: int,
    cos: Tensor | None,
    sin: Tensor | None,
    bias: Tensor | None = None,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    norm_add_one: bool = False,
    q_out: Tensor | None = None,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    write_back: bool = False,
) -> Tensor:
    """Normalise and rotate q and k, write k and v into their slots.

    Args:
        qkv: [T, (Hq + 2 Hkv) * D], contiguous. k_pages, v_pages: [P, Hkv, S, D], same dtype.
        k_scales, v_scales: [P, Hkv, S] float32 of pages in FP8: every token and head gets its own,
            and v_pages is [P, Hkv, D, S]. A token with NaN has NaN as a scale, no value is NaN.
        write_back: replace k and v in qkv by what stands in pages of FP8, so that prompts can read
            it there. Meant for many tokens: their values are written by a launch of its own, since
            a page has those of a dim side by side.
        positions, slot_mapping: [T] int64; several tokens may share a slot of page 0 only.
        cos, sin: [max_len, R] fp32, R <= D, halves equal; None leaves positions out (NoPE).
        bias: [(Hq + 2 Hkv) * D]. q_norm, k_norm: [D], per-head RMSNorm weights (both or none).
    Returns: q, [T, Hq, D], dtype of qkv; everything in between is fp32.
    Raises: KernelInputError on shapes that do not fit. Twin: reference.rms_norm, reference.rotate.
    """
    require_contiguous(qkv=qkv, k_pages=k_pages, v_pages=v_pages, cos=cos, sin=sin)
    require((q_norm is None) == (k_norm is None), "q_norm and k_norm come together")
    require((cos is None) == (sin is None), "cos and sin come together")
    _check(qkv, k_pages, num_heads, cos)
    check_page_dtypes(qkv.dtype, k_pages, v_pages, k_scales, v_scales)
    require(not write_back or k_scales is not None, "only rounded keys and values are written back")
    num_tokens = qkv.shape[0]
    _, num_kv_heads, page_size, head_dim = k_pages.shape
    if q_out is None:
        q_out = torch.empty(num_tokens, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    if num_tokens == 0:
        return q_out
    rot_dim = 0 if cos is None else cos.shape[1]
    heads = 8
    num_rotated = num_heads + (1 if write_back else 2) * num_kv_heads
    _qkv_rope_kernel[(num_tokens, ceil_div(num_rotated, heads))](
        qkv,
        bias,
        q_norm,
        k_norm,
        cos,
        sin,
        positions,
        slot_mapping,
        q_out,
        k_pages,
        v_pages,
        k_scales,
        v_scales,
        k_pages.stride(0),
        rot_dim,
        eps,
        HQ=num_heads,
        HKV=num_kv_heads,
        D=head_dim,
        S=page_size,
        ROT=rot_dim,
        HEADS=heads,
        BLOCK_HALF=next_power_of_2(max(rot_dim // 2, 1)),
        BLOCK_REST=next_power_of_2(max(head_dim - rot_dim, 1)),
        HAS_BIAS=bias is not None,
        HAS_NORM=q_norm is not None,
        ADD_ONE=norm_add_one,
        WRITE_BACK=write_back,
        num_warps=4,
        **dependent_launch(qkv.device),
    )
    if write_back and v_scales is not None:
        write_values(qkv, bias, slot_mapping, v_pages, v_scales, num_heads=num_heads)
    return q_out
