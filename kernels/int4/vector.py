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
from tokenbus.kernels.int4.layout import BLOCK, STRIP, WORDS
from tokenbus.kernels.int4.matmul import scales_of, zeros_of
from tokenbus.kernels.launch import release_successor, wait_for_inputs
from tokenbus.kernels.quantize import magnitude

# Registers of an output's block: two numbers of 16 bits each, side by side.
_STRIP, _REGISTERS = tl.constexpr(STRIP), tl.constexpr(WORDS // 2)
_PAIRS = tl.constexpr(BLOCK // 2)
# Threads that share an output's block, with four registers each.
_SHARES = tl.constexpr(WORDS // 8)


@dataclass(frozen=True, slots=True)
class Int4VectorTuning:
    """How one shape of a lone row is laid out.

    block_n: outputs of a tile, of both halves together behind a gate. num_warps: warps that share
    the columns, of which each has eight blocks of 128 or some times as many. tiles: those that a
    program works off one after the other, with the weights of the next one on their way.
    max_registers: of a thread, None for as many as the kernel likes.
    """

    block_n: int
    num_warps: int
    tiles: int = 1
    max_registers: int | None = None


@triton.jit
def _number(bits, DTYPE: tl.constexpr):
    """Return the number that the low half of bits holds."""
    return bits.to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)


@triton.jit
def _load_pairs(source, K: tl.constexpr, BLOCKS: tl.constexpr, DTYPE: tl.constexpr):
    """Load the columns that a thread's registers meet: 16 times two of [shares] fp32, by places."""
    STEP: tl.constexpr = 2 * _PAIRS * BLOCKS
    share = tl.arange(0, BLOCKS * _SHARES)
    # By bits, in which the compiler sees no neighbours: it would deal them out to other threads.
    first = (share >> 2) * _PAIRS + (share & 3)
    pairs = ()
    for register in tl.static_range(4):
        for place in tl.static_range(4):
            # Of column 32 m + 16 t + 8 h + 2 c + e the register is m, the place 2 h + t.
            at = first + (16 * register + 8 * (place % 2) + 4 * (place // 2))
            if STEP == K:
                bits = tl.load(source + at)
            else:
                bits = tl.load(source + at, mask=at < K // 2, other=0)
            pairs += ((_number(bits, DTYPE), _number(bits >> 16, DTYPE)),)
    return pairs


@triton.jit
def _load_tile(words, metas, outputs, stride, NUM_BLOCKS: tl.constexpr,
               BLOCKS: tl.constexpr):  # fmt: skip
    """Ask for all blocks of some outputs, [R, 16 BLOCKS] int32, and their metas, [R, shares]."""
    place = tl.arange(0, _REGISTERS * BLOCKS)
    block = place // _REGISTERS
    of_meta = tl.arange(0, _SHARES * BLOCKS) // _SHARES
    strip = (outputs // _STRIP).to(tl.int64) * (NUM_BLOCKS * _STRIP) + outputs % _STRIP
    at = words + strip[:, None] * _REGISTERS
    at += (block * (_STRIP * _REGISTERS) + place % _REGISTERS)[None, :]
    meta_at = metas + of_meta[None, :] * stride + outputs[:, None]
    if NUM_BLOCKS == BLOCKS:
        tile = tl.load(at, eviction_policy="evict_first")
        meta = tl.load(meta_at)
    else:
        there = block[None, :] < NUM_BLOCKS
        tile = tl.load(at, mask=there, other=0, eviction_policy="evict_first")
        meta = tl.load(meta_at, mask=of_meta[None, :] < NUM_BLOCKS, other=0)
    return tile, meta


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
def _sums(tile, meta, columns, total, undo, SCALES: tl.constexpr, BY_ASM: tl.constexpr):
    """Return the products of a tile's outputs with the row, [R] fp32."""
    R: tl.constexpr = tile.shape[0]
    SHARES: tl.constexpr = tile.shape[1] // 4
    even, odd = tl.split(tl.reshape(tile, (R, SHARES, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    registers = (first, second, third, fourth)
    acc = tl.zeros([R, SHARES], tl.int32 if BY_ASM else tl.float32)
    for index in tl.static_range(4):
        acc = _add_products(
            acc, registers[index], columns[4 * index][None, :], columns[4 * index + 1][None, :],
            columns[4 * index + 2][None, :], columns[4 * index + 3][None, :], BY_ASM,
        )  # fmt: skip
    if BY_ASM:
        acc = _number(acc, tl.float16) + _number(acc >> 16, tl.float16)
    product = acc * undo[None, :] - zeros_of(meta).to(tl.float32) * total[None, :]
    return tl.sum(product * scales_of(meta, SCALES).to(tl.float32), axis=1)


@triton.jit
def _outputs_of(cols, N, BLOCK_N: tl.constexpr, HALF: tl.constexpr):
    """Return the weight's rows of a tile's columns: behind a gate [gates, ups]."""
    if HALF == BLOCK_N:
        outputs = tl.minimum(cols + tl.arange(0, BLOCK_N), N - 1)
    else:
        place = tl.arange(0, BLOCK_N)
        outputs = tl.minimum(cols + place % HALF, N - 1) + place // HALF * N
    return outputs


@triton.jit
def int4_vector_kernel(
    x, words, metas, bias, residual, norm_weight, out, N, eps, K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr, TILES: tl.constexpr, SCALES: tl.constexpr,
    DTYPE: tl.constexpr, NORM_DTYPE: tl.constexpr, BY_ASM: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr, ACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute TILES times BLOCK_N outputs: norm in front, bias, gate and residual behind.

    x and norm_weight come by pairs, int32, and stay in registers. Weights do not depend on the
    previous kernel: those of the first tile are on their way before this one waits for its inputs,
    and those of the next one always. The norm's scale is one number, applied to finished sums.
    """
    release_successor(PDL)
    NUM_BLOCKS: tl.constexpr = (K + 2 * _PAIRS - 1) // (2 * _PAIRS)
    HALF: tl.constexpr = BLOCK_N if ACT == "none" else BLOCK_N // 2
    stride = N if ACT == "none" else 2 * N
    col = tl.program_id(0) * (TILES * HALF)
    outputs = _outputs_of(col, N, BLOCK_N, HALF)
    tile, meta = _load_tile(words, metas, outputs, stride, NUM_BLOCKS, BLOCKS)
    if HAS_NORM:
        weights = _load_pairs(norm_weight, K, BLOCKS, NORM_DTYPE)
    wait_for_inputs(PDL)
    pairs = _load_pairs(x, K, BLOCKS, DTYPE)
    norm = 1.0
    if HAS_NORM:
        squares = tl.zeros([_SHARES * BLOCKS], tl.float32)
        weighted = ()
        for index in tl.static_range(16):
            low, high = pairs[index]
            squares += low * low + high * high
            weighted += ((low * weights[index][0], high * weights[index][1]),)
        pairs = weighted
        norm = tl.rsqrt(tl.sum(squares) / K + eps)
    columns, total, undo = _scaled(pairs, BY_ASM)
    for turn in tl.range(0, TILES, num_stages=1):
        cols = col + tl.arange(0, HALF)
        if HAS_RESIDUAL:
            earlier = tl.load(residual + cols, mask=cols < N, other=0.0)
        following = _outputs_of(col + HALF, N, BLOCK_N, HALF)
        next_tile, next_meta = tile, meta
        if turn + 1 < TILES:
            next_tile, next_meta = _load_tile(words, metas, following, stride, NUM_BLOCKS, BLOCKS)
        y = _sums(tile, meta, columns, total, undo, SCALES, BY_ASM) * norm
        if HAS_BIAS:
            y += tl.load(bias + outputs).to(tl.float32)
        if ACT == "none":
            result = y
        else:
            gates, ups = tl.split(tl.trans(tl.reshape(y, (2, HALF))))
            result = gate(gates, ACT) * ups
        if HAS_RESIDUAL:
            result += earlier
            tl.store(residual + cols, result, mask=cols < N)
        tl.store(out + cols, result.to(out.dtype.element_ty), mask=cols < N)
        tile, meta, outputs, col = next_tile, next_meta, following, col + HALF
