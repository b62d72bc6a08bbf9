"""Products of a lone row with weights of four bits: without matrix units, the row unsplit.

Masks leave steps of four bits in a register as a pair of numbers of half precision, 2^-24 of each
step (2^-20 where the mask is four bits up), which meet pairs of the row. A thread adds up 32
columns so, in two sums of 16, which meet scale and zero point in fp32. Its columns are scaled by a
power of two, so that neither large nor small ones leave the range of half precision.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
# mypy: disable-error-code="assignment,misc,var-annotated"
from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from tokenbus.kernels.activation import gate
from tokenbus.kernels.launch import release_successor, wait_for_inputs
from tokenbus.kernels.linear.int4_layout import BLOCK, STRIP, WORDS
from tokenbus.kernels.linear.int4_matmul import scales_of, zeros_of
from tokenbus.kernels.quantize import magnitude

# Registers of an output's block: two numbers of 16 bits each, side by side.
_STRIP, _REGISTERS = tl.constexpr(STRIP), tl.constexpr(WORDS // 2)
_PAIRS = tl.constexpr(BLOCK // 2)
# Threads that share an output's block, with four registers each.
_SHARES = tl.constexpr(WORDS // 8)


@dataclass(frozen=True, slots=True)
class Int4VectorTuning:
    """How one shape of a lone row is laid out.

    block_n: outputs of a program, of each half behind a gate, a multiple of 8. blocks: of 128
    inputs per step, four threads each. ahead: steps in flight.
    """

    block_n: int
    num_warps: int
    blocks: int
    ahead: int = 1


@triton.jit
def _number(bits, DTYPE: tl.constexpr):
    """Return the number that the low half of bits holds."""
    return bits.to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)


@triton.jit
def _load_pairs(source, step, K: tl.constexpr, BLOCKS: tl.constexpr, DTYPE: tl.constexpr):
    """Load the columns that a thread's registers meet: 16 times two of [shares] fp32, by places."""
    STEP: tl.constexpr = 2 * _PAIRS * BLOCKS
    WHOLE: tl.constexpr = (K + STEP - 1) // STEP * STEP == K
    share = tl.arange(0, BLOCKS * _SHARES)
    first = (step * BLOCKS + share // _SHARES) * _PAIRS + share % _SHARES
    pairs = ()
    for register in tl.static_range(4):
        for place in tl.static_range(4):
            # Of column 32 m + 16 t + 8 h + 2 c + e the register is m, the place 2 h + t.
            at = first + (16 * register + 8 * (place % 2) + 4 * (place // 2))
            if WHOLE:
                bits = tl.load(source + at)
            else:
                bits = tl.load(source + at, mask=at < K // 2, other=0)
            pairs += ((_number(bits, DTYPE), _number(bits >> 16, DTYPE)),)
    return pairs


@triton.jit
def _load_piece(words, metas, outputs, step, stride, NUM_BLOCKS: tl.constexpr,
                BLOCKS: tl.constexpr):  # fmt: skip
    """Ask for some blocks of some outputs, [R, 16 BLOCKS] int32, and metas, [R, shares]."""
    place = tl.arange(0, _REGISTERS * BLOCKS)
    block = step * BLOCKS + place // _REGISTERS
    of_meta = step * BLOCKS + tl.arange(0, _SHARES * BLOCKS) // _SHARES
    strip = (outputs // _STRIP).to(tl.int64) * (NUM_BLOCKS * _STRIP) + outputs % _STRIP
    at = words + strip[:, None] * _REGISTERS
    at += (block * (_STRIP * _REGISTERS) + place % _REGISTERS)[None, :]
    meta_at = metas + of_meta[None, :] * stride + outputs[:, None]
    if NUM_BLOCKS % BLOCKS == 0:
        return tl.load(at, eviction_policy="evict_first"), tl.load(meta_at)
    piece = tl.load(at, mask=block[None, :] < NUM_BLOCKS, other=0, eviction_policy="evict_first")
    return piece, tl.load(meta_at, mask=of_meta[None, :] < NUM_BLOCKS, other=0)


@triton.jit
def _packed(low, high, BY_ASM: tl.constexpr):
    """Round two numbers to half precision, side by side in a register."""
    if BY_ASM:
        pair = tl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [low, high],
            dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        pair = low.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        pair |= high.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) << 16
    return pair


@triton.jit
def _scaled(pairs, BY_ASM: tl.constexpr):
    """Bring a thread's columns to half precision: their registers, sum, and what undoes it."""
    top = tl.zeros_like(pairs[0][0]).to(tl.int32)
    total = tl.zeros_like(pairs[0][0])
    for index in tl.static_range(16):
        low, high = pairs[index]
        top = tl.maximum(top, tl.maximum(magnitude(low), magnitude(high)))
        total += low + high
    # The largest number gets the exponent of 2^14; bits of an exponent are biased by 127.
    exponent = tl.minimum(tl.maximum(top >> 23, 16), 244)
    scale = ((127 + 14 + 127 - exponent) << 23).to(tl.float32, bitcast=True)
    undo = ((exponent - 14 + 24) << 23).to(tl.float32, bitcast=True)
    columns = ()
    for index in tl.static_range(16):
        low, high = pairs[index]
        by_place = scale if index % 2 == 0 else scale * 0.0625
        columns += (_packed(low * by_place, high * by_place, BY_ASM),)
    return columns, total, undo


@triton.jit
def _plain_products(steps, columns):
    """Return 2^-24 of the products of two steps of a register and two columns, fp32."""
    low = (steps & 15).to(tl.float32) * _number(columns, tl.float16)
    high = (steps >> 16 & 15).to(tl.float32) * _number(columns >> 16, tl.float16)
    return (low + high) * 2.0**-24


@triton.jit
def _add_products(acc, steps, first, second, third, fourth, BY_ASM: tl.constexpr):
    """Add the products of a register's eight steps to sums, two of half precision in a register.

    Without assembly the sums are fp32, of both.
    """
    if BY_ASM:
        acc = tl.inline_asm_elementwise(
            """
            {
                .reg .b32 upper, steps;
                shr.u32 upper, $2, 8;
                and.b32 steps, $2, 0x000f000f;
                fma.rn.f16x2 $0, steps, $3, $1;
                and.b32 steps, $2, 0x00f000f0;
                fma.rn.f16x2 $0, steps, $4, $0;
                and.b32 steps, upper, 0x000f000f;
                fma.rn.f16x2 $0, steps, $5, $0;
                and.b32 steps, upper, 0x00f000f0;
                fma.rn.f16x2 $0, steps, $6, $0;
            }
            """,
            "=&r,r,r,r,r,r,r", [acc, steps, first, second, third, fourth],
            dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        acc += _plain_products(steps, first) + _plain_products(steps >> 4, second) * 16
        acc += _plain_products(steps >> 8, third) + _plain_products(steps >> 12, fourth) * 16
    return acc


@triton.jit
def _products(piece, meta, columns, total, undo, SCALES: tl.constexpr, BY_ASM: tl.constexpr):
    """Return what a piece adds to the sums of its shares, [R, shares] fp32."""
    R: tl.constexpr = piece.shape[0]
    shared = tl.reshape(piece, (R, piece.shape[1] // 4, 2, 2))
    even, odd = tl.split(shared)
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    registers = (first, second, third, fourth)
    acc = tl.zeros([R, piece.shape[1] // 4], tl.int32 if BY_ASM else tl.float32)
    for index in tl.static_range(4):
        acc = _add_products(
            acc, registers[index], columns[4 * index][None, :], columns[4 * index + 1][None, :],
            columns[4 * index + 2][None, :], columns[4 * index + 3][None, :], BY_ASM,
        )  # fmt: skip
    if BY_ASM:
        acc = _number(acc, tl.float16) + _number(acc >> 16, tl.float16)
    product = acc * undo[None, :] - zeros_of(meta).to(tl.float32) * total[None, :]
    return product * scales_of(meta, SCALES).to(tl.float32)


@triton.jit
def int4_vector_kernel(
    x, words, metas, bias, residual, norm_weight, out, N, eps, K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr, AHEAD: tl.constexpr, SCALES: tl.constexpr,
    DTYPE: tl.constexpr, NORM_DTYPE: tl.constexpr, BY_ASM: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr, ACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_N outputs: norm in front, bias, gate and residual behind; x by pairs, int32.

    Weights do not depend on the previous kernel: AHEAD steps are on their way before this one waits
    for its inputs, and as many stay so. The norm's scale is one number, applied to finished sums.
    """
    release_successor(PDL)
    NUM_BLOCKS: tl.constexpr = (K + 2 * _PAIRS - 1) // (2 * _PAIRS)
    STEPS: tl.constexpr = (NUM_BLOCKS + BLOCKS - 1) // BLOCKS
    HALVES: tl.constexpr = 1 if ACT == "none" else 2
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    outputs = tl.minimum(cols, N - 1)
    sums = ()
    shifts = ()
    coming = ()
    for half in tl.static_range(HALVES):
        sums += (tl.zeros([BLOCK_N, _SHARES * BLOCKS], tl.float32),)
        shifts += (
            tl.load(bias + half * N + outputs).to(tl.float32)
            if HAS_BIAS
            else tl.zeros([BLOCK_N], tl.float32),
        )
    for step in tl.static_range(min(AHEAD, STEPS)):
        for half in tl.static_range(HALVES):
            coming += (
                _load_piece(words, metas, half * N + outputs, step, HALVES * N, NUM_BLOCKS, BLOCKS),
            )
    squares = tl.zeros([_SHARES * BLOCKS], tl.float32)
    for step in tl.static_range(STEPS):
        if HAS_NORM:
            weights = _load_pairs(norm_weight, step, K, BLOCKS, NORM_DTYPE)
        if step == 0:
            wait_for_inputs(PDL)
            if HAS_RESIDUAL:
                earlier = tl.load(residual + outputs)
        pairs = _load_pairs(x, step, K, BLOCKS, DTYPE)
        if HAS_NORM:
            weighted = ()
            for index in tl.static_range(16):
                low, high = pairs[index]
                squares += low * low + high * high
                weighted += ((low * weights[index][0], high * weights[index][1]),)
            pairs = weighted
        columns, total, undo = _scaled(pairs, BY_ASM)
        for half in tl.static_range(HALVES):
            piece, meta = coming[0]
            coming = coming[1:]
            acc = sums[0]
            sums = sums[1:]
            acc += _products(piece, meta, columns, total, undo, SCALES, BY_ASM)
            sums += (acc,)
            if step + AHEAD < STEPS:
                coming += (
                    _load_piece(words, metas, half * N + outputs, step + AHEAD, HALVES * N,
                                NUM_BLOCKS, BLOCKS),
                )  # fmt: skip
    y = tl.sum(sums[0], axis=1)
    norm = 1.0
    if HAS_NORM:
        norm = tl.rsqrt(tl.sum(squares) / K + eps)
    y = y * norm + shifts[0]
    if ACT != "none":
        y = gate(y, ACT) * (tl.sum(sums[1], axis=1) * norm + shifts[1])
    if HAS_RESIDUAL:
        y += earlier
        tl.store(residual + cols, y, mask=cols < N)
    tl.store(out + cols, y.to(out.dtype.element_ty), mask=cols < N)
