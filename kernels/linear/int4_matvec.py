"""Matrix times vector with weights of four bits: the linear layer of a lone sequence.

The row becomes whole numbers of 23 bits, three bytes each, which meet steps four at a time in exact
integer products. Every program makes them of the row itself, behind a norm if there is one, while
its first weights are on their way.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from tokenbus.kernels.activation import gate
from tokenbus.kernels.launch import release_successor, wait_for_inputs
from tokenbus.kernels.linear.int4_layout import BLOCK, STRIP
from tokenbus.kernels.linear.int4_matmul import scales_of, zeros_of

_BLOCK, _STRIP = tl.constexpr(BLOCK), tl.constexpr(STRIP)
# Words of 32 bits, eight steps each, that a block of one output has.
_WORDS = tl.constexpr(BLOCK // 8)
# The largest whole number of a row: 32 of them times a step of 15 fit into 32 bits.
_TOP = tl.constexpr(4194303.0)
_TINY = tl.constexpr(1e-30)


@triton.jit
def _columns(first, second, third, fourth):
    """Return the sum of squares and the largest of four tensors, over all of them."""
    squares = first * first + second * second + third * third + fourth * fourth
    top = tl.maximum(
        tl.maximum(tl.abs(first), tl.abs(second)), tl.maximum(tl.abs(third), tl.abs(fourth))
    )
    return squares, top


@triton.jit
def _load_row(x, norm_weight, order, column, mask, K: tl.constexpr, HAS_NORM: tl.constexpr,
              HAS_ORDER: tl.constexpr):  # fmt: skip
    """Return numbers of a row and what they become by the norm's weight."""
    if HAS_ORDER:
        column = tl.load(order + column, mask=mask, other=0)
    value = tl.load(x + column, mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        return value, value * tl.load(norm_weight + column, mask=mask, other=0.0).to(tl.float32)
    return value, value


@triton.jit
def _byte(first, second, third, fourth, SHIFT: tl.constexpr):
    """Put the bytes at SHIFT of four whole numbers into one of 32 bits, the first lowest."""
    low = (first >> SHIFT & 255) | (second >> SHIFT & 255) << 8
    return low | (third >> SHIFT & 255) << 16 | (fourth >> SHIFT & 255) << 24


@triton.jit
def _products(words, high, middle, low, high2, middle2, low2, BY_ASM: tl.constexpr):
    """Multiply the eight steps of each word by whole numbers of three bytes, and add them up.

    high, middle, low: of the four lower steps of all bytes, high2, …: of the upper ones.
    """
    if BY_ASM:
        return tl.inline_asm_elementwise(
            """
            {
                .reg .b32 first, second;
                shr.u32 second, $1, 4;
                and.b32 first, $1, 0x0f0f0f0f;
                and.b32 second, second, 0x0f0f0f0f;
                dp4a.u32.s32 $0, first, $2, 0;
                dp4a.u32.s32 $0, second, $5, $0;
                shl.b32 $0, $0, 8;
                dp4a.u32.u32 $0, first, $3, $0;
                dp4a.u32.u32 $0, second, $6, $0;
                shl.b32 $0, $0, 8;
                dp4a.u32.u32 $0, first, $4, $0;
                dp4a.u32.u32 $0, second, $7, $0;
            }
            """,
            "=&r,r,r,r,r,r,r,r", [words, high, middle, low, high2, middle2, low2],
            dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    total = tl.zeros_like(words)
    for part in tl.static_range(4):
        first, second = words >> 8 * part & 15, words >> 8 * part + 4 & 15
        signed = (high << 24 - 8 * part) >> 24
        signed2 = (high2 << 24 - 8 * part) >> 24
        value = signed * 65536 + (middle >> 8 * part & 255) * 256 + (low >> 8 * part & 255)
        value2 = signed2 * 65536 + (middle2 >> 8 * part & 255) * 256 + (low2 >> 8 * part & 255)
        total += first * value + second * value2
    return total


@triton.jit
def _outputs_of(words, metas, strip, stride, sums, high, middle, low, high2, middle2, low2,
                NUM_BLOCKS: tl.constexpr, BLOCKS: tl.constexpr, SCALES: tl.constexpr,
                BY_ASM: tl.constexpr):  # fmt: skip
    """Multiply a strip, without the row's scale: [8] float32."""
    rows = tl.arange(0, _STRIP)
    blocks = tl.arange(0, BLOCKS)
    there = blocks < NUM_BLOCKS
    place = rows[:, None, None] * _WORDS + blocks[None, :, None] * (_STRIP * _WORDS)
    place += tl.arange(0, _WORDS)[None, None, :]
    word = tl.load(
        words + strip.to(tl.int64) * (NUM_BLOCKS * _STRIP * _WORDS) + place,
        mask=there[None, :, None], other=0, eviction_policy="evict_first",
    )  # fmt: skip
    outputs = tl.minimum(strip * _STRIP + rows, stride - 1)
    meta = tl.load(
        metas + blocks[None, :] * stride + outputs[:, None], mask=there[None, :], other=0
    )
    total = _products(word, high, middle, low, high2, middle2, low2, BY_ASM)
    total = tl.sum(tl.reshape(total, (_STRIP, BLOCKS, 4, 4)), axis=3).to(tl.float32)
    total -= zeros_of(meta).to(tl.float32)[:, :, None] * sums[None, :, :]
    total *= scales_of(meta, SCALES).to(tl.float32)[:, :, None]
    return tl.sum(tl.sum(total, axis=2), axis=1)


@triton.jit
def int4_matvec_kernel(
    x, norm_weight, order, words, metas, bias, residual, out, N, eps, K: tl.constexpr,
    BLOCKS: tl.constexpr, STRIPS: tl.constexpr, SCALES: tl.constexpr, BY_ASM: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_ORDER: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, ACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute 8 STRIPS outputs: norm in front, bias, gate and residual behind.

    BLOCKS: those of a row, up to a power of two. N is a multiple of 8 behind a gate.
    """
    release_successor(PDL)
    NUM_BLOCKS: tl.constexpr = (K + _BLOCK - 1) // _BLOCK
    blocks = tl.arange(0, BLOCKS)
    place = tl.arange(0, _WORDS)
    # Word 4 c + m has columns 32 m + 2 c on; its bytes are those at 0, 8, 1 and 9.
    base = blocks[:, None] * _BLOCK + (place % 4 * 32 + place // 4 * 2)[None, :]
    stride = N if ACT == "none" else 2 * N
    wait_for_inputs(PDL)
    a, aw = _load_row(x, norm_weight, order, base, base < K, K, HAS_NORM, HAS_ORDER)
    b, bw = _load_row(x, norm_weight, order, base + 8, base + 8 < K, K, HAS_NORM, HAS_ORDER)
    c, cw = _load_row(x, norm_weight, order, base + 1, base + 1 < K, K, HAS_NORM, HAS_ORDER)
    d, dw = _load_row(x, norm_weight, order, base + 9, base + 9 < K, K, HAS_NORM, HAS_ORDER)
    e, ew = _load_row(x, norm_weight, order, base + 16, base + 16 < K, K, HAS_NORM, HAS_ORDER)
    f, fw = _load_row(x, norm_weight, order, base + 24, base + 24 < K, K, HAS_NORM, HAS_ORDER)
    g, gw = _load_row(x, norm_weight, order, base + 17, base + 17 < K, K, HAS_NORM, HAS_ORDER)
    h, hw = _load_row(x, norm_weight, order, base + 25, base + 25 < K, K, HAS_NORM, HAS_ORDER)
    squares, _ = _columns(a, b, c, d)
    squares2, _ = _columns(e, f, g, h)
    _, top = _columns(aw, bw, cw, dw)
    _, top2 = _columns(ew, fw, gw, hw)
    scale = tl.maximum(tl.max(tl.maximum(top, top2)), _TINY) / _TOP
    squares = tl.sum(squares + squares2)
    by_row = scale
    if HAS_NORM:
        by_row *= tl.rsqrt(squares / K + eps)
    # A row with NaN or an infinity has a scale of NaN.
    by_row += squares - squares
    a, b, c, d = _whole(aw, scale), _whole(bw, scale), _whole(cw, scale), _whole(dw, scale)
    e, f, g, h = _whole(ew, scale), _whole(fw, scale), _whole(gw, scale), _whole(hw, scale)
    high, middle, low = _byte(a, b, c, d, 16), _byte(a, b, c, d, 8), _byte(a, b, c, d, 0)
    high2, middle2, low2 = _byte(e, f, g, h, 16), _byte(e, f, g, h, 8), _byte(e, f, g, h, 0)
    sums = tl.reshape(a + b + c + d + (e + f + g + h), (BLOCKS, 4, 4))
    sums = tl.sum(sums, axis=2).to(tl.float32)
    high, middle, low = high[None, :, :], middle[None, :, :], low[None, :, :]
    high2, middle2, low2 = high2[None, :, :], middle2[None, :, :], low2[None, :, :]
    rows = tl.arange(0, _STRIP)
    for number in range(STRIPS):
        strip = tl.program_id(0) * STRIPS + number
        outputs = strip * _STRIP + rows
        live = outputs < N
        y = by_row * _outputs_of(
            words, metas, strip, stride, sums, high, middle, low, high2, middle2, low2,
            NUM_BLOCKS, BLOCKS, SCALES, BY_ASM,
        )  # fmt: skip
        if HAS_BIAS:
            y += tl.load(bias + outputs, mask=live, other=0.0).to(tl.float32)
        if ACT != "none":
            up = by_row * _outputs_of(
                words, metas, strip + N // _STRIP, stride, sums, high, middle, low, high2, middle2,
                low2, NUM_BLOCKS, BLOCKS, SCALES, BY_ASM,
            )  # fmt: skip
            if HAS_BIAS:
                up += tl.load(bias + N + outputs, mask=live, other=0.0).to(tl.float32)
            y = gate(y, ACT) * up
        if HAS_RESIDUAL:
            y += tl.load(residual + outputs, mask=live, other=0.0)
            tl.store(residual + outputs, y, mask=live)
        tl.store(out + outputs, y.to(out.dtype.element_ty), mask=live)


@triton.jit
def _whole(value, scale):
    """Round numbers to whole ones of the scale; what is no number becomes any."""
    value = tl.floor(value / scale + 0.5)
    value = tl.where(value == value, value, 0.0)
    return tl.minimum(tl.maximum(value, -_TOP), _TOP).to(tl.int32)
