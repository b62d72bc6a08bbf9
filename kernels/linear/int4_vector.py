"""Products of a lone row with weights of four bits: without matrix units, the row as it is.

A thread takes eight numbers of four steps from a block (see `int4_layout`), makes whole numbers of
them, two at a time, and adds up their products in fp32; nothing is rounded. Whatever precedes the
product stays one launch less: the row is neither split nor normalised before.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from tokenbus.kernels.launch import release_successor, wait_for_inputs
from tokenbus.kernels.linear.int4_layout import BLOCK, STRIP, WORDS
from tokenbus.kernels.linear.int4_matmul import scales_of, zeros_of

_BLOCK, _STRIP, _WORDS = tl.constexpr(BLOCK), tl.constexpr(STRIP), tl.constexpr(WORDS)


@dataclass(frozen=True, slots=True)
class Int4VectorTuning:
    """How one shape of a lone row is laid out.

    block_n: outputs of a group. blocks: of 128 inputs per step; four threads take a block of an
    output. groups: of outputs that a program has side by side. ahead: pieces in flight, each
    a step of a group.
    """

    block_n: int
    num_warps: int
    blocks: int
    groups: int = 1
    ahead: int = 4


def _taking_places_apart() -> str:
    """Return the assembly that takes eight steps of a register for four pairs in half precision.

    $4: the steps, $5: a pair of 1024 + the zero point, $6: a pair of -64 - the zero point. The last
    bits of 1024 and more count ones: a step there is 1024 and the step, or, four bits up, 1024 and
    16 times the step.
    """
    lines = ["{ .reg .b32 upper, sixteenth;", "mov.b32 sixteenth, 0x2c002c00;"]
    lines.append("shr.u32 upper, $4, 8;")
    for place, source in enumerate(("$4", "$4", "upper", "upper")):
        if place % 2 == 0:
            lines.append(f"lop3.b32 ${place}, {source}, 0x000f000f, 0x64006400, 0xea;")
            lines.append(f"sub.rn.f16x2 ${place}, ${place}, $5;")
        else:
            lines.append(f"lop3.b32 ${place}, {source}, 0x00f000f0, 0x64006400, 0xea;")
            lines.append(f"fma.rn.f16x2 ${place}, ${place}, sixteenth, $6;")
    return "\n".join([*lines, "}"])


_PLACES = tl.constexpr(_taking_places_apart())


@triton.jit
def _spread(value, R: tl.constexpr, WIDTH: tl.constexpr):
    """Give each block's number to its words: [R, blocks] -> [R, WIDTH]."""
    value = tl.broadcast_to(value[:, :, None], (R, WIDTH // _WORDS, _WORDS))
    return tl.reshape(value, (R, WIDTH))


@triton.jit
def _numbers_of(words, zero, BY_ASM: tl.constexpr):
    """Return step - zero of the four places of words, [R, W] in half precision, which is exact.

    zero: [R, blocks] int32.
    """
    if BY_ASM:
        low = _spread((zero + 1024).to(tl.float16), words.shape[0], words.shape[1])
        high = _spread((-64 - zero).to(tl.float16), words.shape[0], words.shape[1])
        return tl.inline_asm_elementwise(
            _PLACES, "=&r,=&r,=&r,=&r,r,r,r", [words, low, high],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16), is_pure=True, pack=2,
        )  # fmt: skip
    zero = _spread(zero, words.shape[0], words.shape[1])
    return (
        ((words & 15) - zero).to(tl.float16),
        ((words >> 4 & 15) - zero).to(tl.float16),
        ((words >> 8 & 15) - zero).to(tl.float16),
        ((words >> 12 & 15) - zero).to(tl.float16),
    )


@triton.jit
def _load_piece(words, metas, outputs, step, stride, NUM_BLOCKS: tl.constexpr,
                BLOCKS: tl.constexpr):  # fmt: skip
    """Ask for some blocks of some outputs, [R, 32 BLOCKS] int16, and their metas, [R, BLOCKS].

    Beyond the last block any weight will do: all of x is zero.
    """
    place = tl.arange(0, _WORDS * BLOCKS)
    block = step * BLOCKS + place // _WORDS
    of_meta = step * BLOCKS + tl.arange(0, BLOCKS)
    if NUM_BLOCKS % BLOCKS != 0:
        block = tl.minimum(block, NUM_BLOCKS - 1)
        of_meta = tl.minimum(of_meta, NUM_BLOCKS - 1)
    strip = outputs // _STRIP * (NUM_BLOCKS * _STRIP) + outputs % _STRIP
    at = (
        strip[:, None].to(tl.int64) * _WORDS + (block * (_STRIP * _WORDS) + place % _WORDS)[None, :]
    )
    meta = metas + of_meta[None, :] * stride + outputs[:, None]
    return tl.load(words + at, eviction_policy="evict_first"), tl.load(meta)


@triton.jit
def _load_inputs(x, order, step, place: tl.constexpr, K: tl.constexpr, R: tl.constexpr,
                 BLOCKS: tl.constexpr):  # fmt: skip
    """Load the columns that one place of the words of a step meets, for every row, fp32."""
    word = tl.arange(0, _WORDS * BLOCKS)
    column = (step * BLOCKS + word // _WORDS) * _BLOCK + word // 2 % 4 * 32 + word // 8 % 4 * 2
    column += place % 2 * 16 + place // 2 * 8 + word % 2
    column = tl.broadcast_to(column[None, :], [R, _WORDS * BLOCKS])
    STEP: tl.constexpr = _BLOCK * BLOCKS
    WHOLE: tl.constexpr = (K + STEP - 1) // STEP * STEP == K
    mask = tl.full([R, _WORDS * BLOCKS], True, tl.int1) if WHOLE else column < K
    if order is not None:
        column = tl.load(order + column, mask=mask, other=0)
    return tl.load(x + column, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _products(words, meta, values, SCALES: tl.constexpr, BY_ASM: tl.constexpr):
    """Return what the steps of a piece add to the sums of its words, [R, 32 BLOCKS] fp32."""
    numbers = _numbers_of(words, zeros_of(meta), BY_ASM)
    part = numbers[0].to(tl.float32) * values[0]
    part += numbers[1].to(tl.float32) * values[1]
    part += numbers[2].to(tl.float32) * values[2]
    part += numbers[3].to(tl.float32) * values[3]
    scale = scales_of(meta, SCALES).to(tl.float32)
    return part * _spread(scale, words.shape[0], words.shape[1])


@triton.jit
def int4_vector_kernel(
    x, order, words, metas, bias, residual, out, N, K: tl.constexpr, R: tl.constexpr,
    BLOCKS: tl.constexpr, GROUPS: tl.constexpr, AHEAD: tl.constexpr, SCALES: tl.constexpr,
    BY_ASM: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute GROUPS times R outputs, bias and residual behind; column j is input order[j].

    Weights of AHEAD pieces are on their way before the inputs are there, and as many stay so.
    """
    release_successor(PDL)
    NUM_BLOCKS: tl.constexpr = (K + _BLOCK - 1) // _BLOCK
    STEPS: tl.constexpr = (NUM_BLOCKS + BLOCKS - 1) // BLOCKS
    # Of each group its outputs, its sums and what stands there already; pieces on their way.
    outputs = ()
    sums = ()
    earlier = ()
    coming = ()
    for turn in tl.static_range(GROUPS):
        cols = (tl.program_id(0) * GROUPS + turn) * R + tl.arange(0, R)
        outputs += (tl.minimum(cols, N - 1),)
        sums += (tl.zeros([R, _WORDS * BLOCKS], tl.float32),)
    for piece in tl.static_range(min(AHEAD, STEPS * GROUPS)):
        coming += (
            _load_piece(words, metas, outputs[piece % GROUPS], piece // GROUPS, N, NUM_BLOCKS,
                        BLOCKS),
        )  # fmt: skip
    wait_for_inputs(PDL)
    if HAS_RESIDUAL:
        for turn in tl.static_range(GROUPS):
            earlier += (tl.load(residual + outputs[turn]),)
    for step in tl.static_range(STEPS):
        values = ()
        for place in tl.static_range(4):
            values += (_load_inputs(x, order, step, place, K, R, BLOCKS),)
        for turn in tl.static_range(GROUPS):
            piece, meta = coming[0]
            coming = coming[1:]
            acc = sums[0]
            sums = sums[1:]
            acc += _products(piece, meta, values, SCALES, BY_ASM)
            sums += (acc,)
            if step * GROUPS + turn + AHEAD < STEPS * GROUPS:
                coming += (
                    _load_piece(words, metas, outputs[(turn + AHEAD) % GROUPS],
                                step + (turn + AHEAD) // GROUPS, N, NUM_BLOCKS, BLOCKS),
                )  # fmt: skip
    for turn in tl.static_range(GROUPS):
        cols = (tl.program_id(0) * GROUPS + turn) * R + tl.arange(0, R)
        y = tl.sum(sums[turn], axis=1)
        if HAS_BIAS:
            y += tl.load(bias + outputs[turn]).to(tl.float32)
        if HAS_RESIDUAL:
            y += earlier[turn]
            tl.store(residual + cols, y, mask=cols < N)
        tl.store(out + cols, y.to(out.dtype.element_ty), mask=cols < N)
