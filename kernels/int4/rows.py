"""Products of a few rows with weights of four bits: steps and rows meet in e4m3, as they stand.

A byte 0 to 15 is a number of e4m3, 2^-9 of itself, so two masks take eight steps of a register to
the matrix unit. The rows are sums of two numbers of e4m3 (see `split_rows`). Zero points meet the
sums of a block's columns, scales the difference, both in fp32.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from tokenbus.kernels.activation import gate
from tokenbus.kernels.int4.layout import BLOCK, STRIP, WORDS
from tokenbus.kernels.int4.matmul import scales_of, sum_parts, zeros_of
from tokenbus.kernels.launch import release_successor, wait_for_inputs

_BLOCK, _STRIP, _BYTES = tl.constexpr(BLOCK), tl.constexpr(STRIP), tl.constexpr(2 * WORDS)


@triton.jit
def _steps_of(octets, N: tl.constexpr, BY_ASM: tl.constexpr):
    """Return the steps of a block as numbers of e4m3, 2^-9 of each: [N, 64] uint8 -> [N, 128].

    In the order of columns that `SplitRows` has.
    """
    if BY_ASM:
        first, second = tl.inline_asm_elementwise(
            """
            {
                .reg .b32 shifted;
                shr.u32 shifted, $2, 4;
                and.b32 $0, $2, 0x0f0f0f0f;
                and.b32 $1, shifted, 0x0f0f0f0f;
            }
            """,
            "=&r,=r,r", [octets], dtype=(tl.int8, tl.int8), is_pure=True, pack=4,
        )  # fmt: skip
    else:
        first, second = octets & 15, octets >> 4 & 15
    steps = tl.join(first.to(tl.float8e4nv, bitcast=True), second.to(tl.float8e4nv, bitcast=True))
    # Of 16 c + 4 m + 2 e + h and t make 32 m + 16 t + 4 c + 2 e + h: nothing moves between threads.
    steps = tl.permute(tl.reshape(steps, (N, 4, 4, 4, 2)), (0, 2, 4, 1, 3))
    return tl.reshape(steps, (N, _BLOCK))


@triton.jit(do_not_specialize=["M"])
def int4_rows_kernel(
    rows_of, row_scales, sums, words, metas, bias, residual, out, parts, arrivals, M, N,
    K: tl.constexpr, HEIGHT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr,
    SPLITS: tl.constexpr, STAGES: tl.constexpr, SCALES: tl.constexpr, BY_ASM: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute [HEIGHT, BLOCK_N] outputs: bias, gate and residual behind.

    Behind a gate a tile's outputs are gates and ups by eights, which one thread has.
    """
    release_successor(PDL)
    NUM_BLOCKS: tl.constexpr = (K + _BLOCK - 1) // _BLOCK
    SPAN: tl.constexpr = (NUM_BLOCKS + SPLITS * BLOCKS - 1) // (SPLITS * BLOCKS)
    WHOLE: tl.constexpr = SPAN * SPLITS * BLOCKS == NUM_BLOCKS
    WIDTH: tl.constexpr = BLOCK_N if ACT == "none" else BLOCK_N // 2
    tile = tl.program_id(0)
    col = tile * WIDTH
    offs_n = tl.arange(0, BLOCK_N)
    if ACT == "none":
        outputs = tl.minimum(col + offs_n, N - 1)
        stride = N
    else:
        outputs = tl.minimum(col + offs_n // 16 * 8 + offs_n % 8, N - 1) + offs_n // 8 % 2 * N
        stride = 2 * N
    offs_m = tl.arange(0, 2 * HEIGHT)
    strips = outputs // _STRIP * (NUM_BLOCKS * _STRIP) + outputs % _STRIP
    octets_of = words + strips[:, None].to(tl.int64) * _BYTES + tl.arange(0, _BYTES)[None, :]
    rows_of += offs_m[:, None] * (NUM_BLOCKS * _BLOCK) + tl.arange(0, _BLOCK)[None, :]
    acc = tl.zeros([BLOCK_N, 2 * HEIGHT], tl.float32)
    rows = tl.arange(0, HEIGHT)
    live = rows < M
    # What the end needs is on its way from the beginning, not when everyone waits for it.
    if HAS_BIAS:
        shift = tl.load(bias + outputs).to(tl.float32)
    wait_for_inputs(PDL)
    by_row = tl.load(row_scales + rows, mask=live, other=0.0)
    cols = col + tl.arange(0, WIDTH)
    mask = (cols < N)[:, None] & live[None, :]
    place = rows[None, :] * N + cols[:, None]
    if HAS_RESIDUAL:
        earlier = tl.load(residual + place, mask=mask, other=0.0)
    for step in tl.range(0, SPAN, num_stages=STAGES):
        for part in tl.static_range(BLOCKS):
            block = (tl.program_id(1) * SPAN + step) * BLOCKS + part
            some = offs_m % HEIGHT < M
            if not WHOLE:
                # Beyond the last block all rows are zero and any weight will do.
                some = offs_m % HEIGHT < tl.where(block < NUM_BLOCKS, M, 0)
                block = tl.minimum(block, NUM_BLOCKS - 1)
            octets = tl.load(octets_of + block * (_STRIP * _BYTES))
            meta = tl.load(metas + block * stride + outputs)
            value = tl.load(rows_of + block * _BLOCK, mask=some[:, None], other=0.0)
            total = tl.load(sums + block * (2 * HEIGHT) + offs_m, mask=some, other=0.0)
            product = tl.dot(_steps_of(octets, BLOCK_N, BY_ASM), value.T)
            product -= zeros_of(meta).to(tl.float32)[:, None] * total[None, :]
            acc += product * scales_of(meta, SCALES).to(tl.float32)[:, None]
    y = tl.sum(tl.reshape(acc, (BLOCK_N, 2, HEIGHT)), axis=1)
    is_last = True
    if SPLITS > 1:
        offs = rows[None, :] * BLOCK_N + offs_n[:, None]
        y, is_last = sum_parts(y, parts, tile, arrivals, SPLITS, HEIGHT * BLOCK_N, offs)
    if is_last:
        y *= by_row[None, :]
        if HAS_BIAS:
            y += shift[:, None]
        if ACT == "none":
            result = y
        else:
            eights = tl.reshape(y, (BLOCK_N // 16, 2, 8, HEIGHT))
            gates, ups = tl.split(tl.permute(eights, (0, 2, 3, 1)))
            result = tl.reshape(gate(gates, ACT) * ups, (WIDTH, HEIGHT))
        if HAS_RESIDUAL:
            result += earlier
            tl.store(residual + place, result, mask=mask)
        tl.store(out + place, result.to(out.dtype.element_ty), mask=mask)
