"""Matrix products with weights of four bits, the tall operand, which is widened in registers.

A packed block (see `layout`) holds each thread's steps as the matrix unit wants them, so they
go from the load through a mask, a difference and a product straight into it.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from tokenbus.kernels.activation import gate
from tokenbus.kernels.int4.layout import BLOCK, MAX_ZERO, STRIP, WORDS
from tokenbus.kernels.launch import release_successor, wait_for_inputs

_BLOCK, _WORDS, _STRIP = tl.constexpr(BLOCK), tl.constexpr(WORDS), tl.constexpr(STRIP)
# Bits that a zero point takes.
_ZERO_BITS = tl.constexpr(2 * MAX_ZERO - 1)
# 128 in bfloat16 and 1024 in half precision: the last bits of the numbers from there on count ones,
# so a step that is put there is that number and the step.
_FIRST_BF16, _FIRST_FP16 = tl.constexpr(0x4300), tl.constexpr(0x6400)


@dataclass(frozen=True, slots=True)
class Int4Tuning:
    """How one shape is laid out: rows, outputs and blocks of 128 inputs per step of a program.

    block_m: rows of a program, a power of two from 16 on. block_n: outputs, of both halves together
    behind a gate, a multiple of 64. stages: steps in flight. splits: programs that share the inputs
    of one tile; the last of them to end adds up what all found.
    """

    block_m: int
    block_n: int
    num_warps: int
    stages: int
    blocks: int = 1
    splits: int = 1


@dataclass(frozen=True, slots=True)
class Int4RowsTuning:
    """How one shape of up to 16 split rows is laid out; all as in `Int4Tuning`."""

    block_n: int
    num_warps: int
    stages: int
    blocks: int = 1
    splits: int = 1


def _taking_pairs_apart(kind: str, first: int) -> str:
    """Return the assembly that makes four pairs of weights of a register of steps.

    $4: eight steps, $5: a pair of `first` + the zero point, $6: a pair of the scale.
    """
    lines = ["{ .reg .b32 shifted;"]
    for pair in range(4):
        source = "$4"
        if pair:
            source = "shifted"
            lines.append(f"shr.u32 shifted, $4, {4 * pair};")
        lines += [
            f"lop3.b32 ${pair}, {source}, 0x000f000f, 0x{first << 16 | first:08x}, 0xea;",
            f"sub.rn.{kind}x2 ${pair}, ${pair}, $5;",
            f"mul.rn.{kind}x2 ${pair}, ${pair}, $6;",
        ]
    return "\n".join([*lines, "}"])


_BF16_PAIRS = tl.constexpr(_taking_pairs_apart("bf16", 0x4300))
_FP16_PAIRS = tl.constexpr(_taking_pairs_apart("f16", 0x6400))


@triton.jit
def _pairs(words, zero, scale, BY_ASM: tl.constexpr):
    """Return (step - zero) * scale for the four steps of each of words, in the dtype of scale.

    By assembly two numbers at a time; `zero` then stands on the first number of its dtype.
    """
    if BY_ASM and scale.dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            _BF16_PAIRS, "=&r,=&r,=&r,=&r,r,r,r", [words, zero, scale],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
        )  # fmt: skip
    if BY_ASM and scale.dtype == tl.float16:
        return tl.inline_asm_elementwise(
            _FP16_PAIRS, "=&r,=&r,=&r,=&r,r,r,r", [words, zero, scale],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16), is_pure=True, pack=2,
        )  # fmt: skip
    return (
        ((words & 15).to(scale.dtype) - zero) * scale,
        ((words >> 4 & 15).to(scale.dtype) - zero) * scale,
        ((words >> 8 & 15).to(scale.dtype) - zero) * scale,
        ((words >> 12 & 15).to(scale.dtype) - zero) * scale,
    )


@triton.jit
def _spread(value, N: tl.constexpr, PARTS: tl.constexpr):
    """Give each group's number to its words: [N, PARTS] -> [N, 32]."""
    value = tl.reshape(value, (N, 1, PARTS, 1))
    return tl.reshape(tl.broadcast_to(value, (N, 4, PARTS, 8 // PARTS)), (N, _WORDS))


@triton.jit
def zeros_of(metas):
    """Return the zero points that metas hold, int32."""
    return metas & _ZERO_BITS


@triton.jit
def scales_of(metas, SCALES: tl.constexpr):
    """Return the scales that metas hold, in SCALES."""
    return (metas >> 16).to(tl.int16).to(SCALES, bitcast=True)


@triton.jit
def _widen(words, metas, N: tl.constexpr, PARTS: tl.constexpr, SCALES: tl.constexpr,
           DTYPE: tl.constexpr, BY_ASM: tl.constexpr):  # fmt: skip
    """Return the weights of a block in DTYPE, [N, 128].

    words: [N, 32] int16; metas: [N, PARTS] int32.
    """
    zero = zeros_of(metas)
    if BY_ASM and tl.bfloat16 == DTYPE:
        zero = (zero + _FIRST_BF16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    elif BY_ASM and tl.float16 == DTYPE:
        zero = (zero + _FIRST_FP16).to(tl.int16).to(tl.float16, bitcast=True)
    else:
        zero = zero.to(DTYPE)
    zero = _spread(zero, N, PARTS)
    scale = _spread(scales_of(metas, SCALES).to(DTYPE), N, PARTS)
    first, second, third, fourth = _pairs(words, zero, scale, BY_ASM)
    value = tl.join(tl.join(first, third), tl.join(second, fourth))
    # Of 8 c + 2 m + e, h and t make 32 m + 16 t + 8 h + 2 c + e: nothing moves between threads.
    value = tl.permute(tl.reshape(value, (N, 4, 4, 2, 2, 2)), (0, 2, 5, 4, 1, 3))
    return tl.reshape(value, (N, _BLOCK))


@triton.jit
def _settled(acc, BY_ASM: tl.constexpr):
    """Return sums as they are, waiting for the product that makes them.

    Left alone the compiler waits for it a step later, when registers that the matrix unit still
    reads may have got the next weights.
    """
    if BY_ASM:
        return tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [acc], dtype=tl.float32, is_pure=True, pack=1
        )
    return acc


@triton.jit
def sum_parts(acc, parts, tile, arrivals, SPLITS: tl.constexpr, SIZE: tl.constexpr, offs):
    """Leave the sums of this program, and return those of all and whether it was the last.

    In the order of the inputs, whichever program comes last, so that timing does not matter.
    """
    base = parts + tile.to(tl.int64) * (SPLITS * SIZE)
    tl.store(base + tl.program_id(1) * SIZE + offs, acc, cache_modifier=".cg")
    tl.debug_barrier()
    is_last = tl.atomic_add(arrivals + tile, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
    if is_last:
        tl.debug_barrier()
        tl.store(arrivals + tile, 0)
        acc = tl.zeros_like(acc)
        for part in range(SPLITS):
            acc += tl.load(base + part * SIZE + offs, cache_modifier=".cg")
    return acc, is_last


@triton.jit(do_not_specialize=["M"])
def int4_matmul_kernel(
    x, words, metas, bias, residual, out, parts, arrivals, M, N, K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr, GROUP: tl.constexpr,
    SPLITS: tl.constexpr, STAGES: tl.constexpr, SCALES: tl.constexpr, DTYPE: tl.constexpr,
    BY_ASM: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Compute [BLOCK_M, BLOCK_N] outputs: bias, gate and residual behind.

    Row tiles of the same outputs are neighbours, so that all but the first read the weights from
    the L2 cache. Behind a gate a tile's outputs are gates and ups by eights, which one thread has.
    """
    release_successor(PDL)
    PARTS: tl.constexpr = _BLOCK // GROUP
    NUM_BLOCKS: tl.constexpr = (K + _BLOCK - 1) // _BLOCK
    SPAN: tl.constexpr = (NUM_BLOCKS + SPLITS * BLOCKS - 1) // (SPLITS * BLOCKS)
    WHOLE: tl.constexpr = SPAN * SPLITS * BLOCKS * _BLOCK == K
    WIDTH: tl.constexpr = BLOCK_N if ACT == "none" else BLOCK_N // 2
    tiles_m = tl.cdiv(M, BLOCK_M)
    tile = tl.program_id(0)
    row = tile % tiles_m * BLOCK_M
    col = tile // tiles_m * WIDTH
    offs_n = tl.arange(0, BLOCK_N)
    if ACT == "none":
        outputs = tl.minimum(col + offs_n, N - 1)
        stride = N
    else:
        outputs = tl.minimum(col + offs_n // 16 * 8 + offs_n % 8, N - 1) + offs_n // 8 % 2 * N
        stride = 2 * N
    rows = row + tl.arange(0, BLOCK_M)
    some = rows < M
    offs_g = tl.arange(0, PARTS)
    offs_k = tl.arange(0, _BLOCK)
    strips = outputs // _STRIP * (NUM_BLOCKS * _STRIP) + outputs % _STRIP
    row_words = words + strips[:, None].to(tl.int64) * _WORDS + tl.arange(0, _WORDS)[None, :]
    # Few rows are filled up with zeros, many with the last of them, which takes no masks.
    row_x = rows if BLOCK_M <= 16 else tl.minimum(rows, M - 1)
    row_x = x + row_x[:, None].to(tl.int64) * K + offs_k[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    wait_for_inputs(PDL)
    for step in tl.range(0, SPAN, num_stages=STAGES):
        for part in tl.static_range(BLOCKS):
            block = (tl.program_id(1) * SPAN + step) * BLOCKS + part
            start = block * _BLOCK
            in_k = start + offs_k < K
            if not WHOLE:
                # Beyond the last block, x is zero and any weight will do.
                block = tl.minimum(block, NUM_BLOCKS - 1)
            word = tl.load(row_words + block * (_STRIP * _WORDS))
            meta = tl.load(metas + (block * PARTS + offs_g)[None, :] * stride + outputs[:, None])
            if WHOLE and BLOCK_M > 16:
                value = tl.load(row_x + start)
            elif WHOLE:
                value = tl.load(row_x + start, mask=some[:, None], other=0.0)
            else:
                mask = some[:, None] & in_k[None, :]
                value = tl.load(row_x + start, mask=mask, other=0.0)
            w = _widen(word, meta, BLOCK_N, PARTS, SCALES, DTYPE, BY_ASM)
            acc = _settled(tl.dot(w, value.T, acc, input_precision="ieee"), BY_ASM)
    is_last = True
    if SPLITS > 1:
        offs = tl.arange(0, BLOCK_M)[None, :] * BLOCK_N + offs_n[:, None]
        acc, is_last = sum_parts(acc, parts, tile, arrivals, SPLITS, BLOCK_M * BLOCK_N, offs)
    if is_last:
        if HAS_BIAS:
            acc += tl.load(bias + outputs).to(tl.float32)[:, None]
        if ACT == "none":
            y = acc
        else:
            eights = tl.reshape(acc, (BLOCK_N // 16, 2, 8, BLOCK_M))
            gates, ups = tl.split(tl.permute(eights, (0, 2, 3, 1)))
            y = tl.reshape(gate(gates, ACT) * ups, (WIDTH, BLOCK_M))
        cols = col + tl.arange(0, WIDTH)
        mask = (cols < N)[:, None] & some[None, :]
        first = row.to(tl.int64) * N
        place = tl.arange(0, BLOCK_M)[None, :] * N + cols[:, None]
        if HAS_RESIDUAL:
            y += tl.load(residual + first + place, mask=mask, other=0.0)
            tl.store(residual + first + place, y, mask=mask)
        tl.store(out + first + place, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def int4_widen_kernel(
    words, metas, out, N, K: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr,
    SCALES: tl.constexpr, DTYPE: tl.constexpr, BY_ASM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Write the weights of BLOCK_N outputs and one block to out, [N, K] of DTYPE."""
    release_successor(PDL)
    PARTS: tl.constexpr = _BLOCK // GROUP
    NUM_BLOCKS: tl.constexpr = (K + _BLOCK - 1) // _BLOCK
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    outputs = tl.minimum(cols, N - 1)
    block = tl.program_id(1)
    strips = (outputs // _STRIP).to(tl.int64) * (NUM_BLOCKS * _STRIP) + outputs % _STRIP
    strips += block * _STRIP
    word = tl.load(words + strips[:, None] * _WORDS + tl.arange(0, _WORDS)[None, :])
    offs_g = block * PARTS + tl.arange(0, PARTS)
    meta = tl.load(metas + offs_g[None, :] * N + outputs[:, None])
    value = _widen(word, meta, BLOCK_N, PARTS, SCALES, DTYPE, BY_ASM)
    offs_k = block * _BLOCK + tl.arange(0, _BLOCK)
    # What is overwritten may still be read.
    wait_for_inputs(PDL)
    mask = (cols < N)[:, None] & (offs_k < K)[None, :]
    tl.store(out + cols[:, None].to(tl.int64) * K + offs_k[None, :], value, mask=mask)
