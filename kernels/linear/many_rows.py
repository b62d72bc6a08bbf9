"""Products of many rows for Hopper, with the gate behind in the same launch.

One warp fetches, two groups of four multiply 64 rows of a tile each: while one group finishes its
tile, the matrix units work for the other, and the next tile is on its way. Gluon has no
interpreter: under Triton's, and on other GPUs, cuBLAS multiplies.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from tokenbus.kernels.activation import gate
from tokenbus.kernels.hopper import barriers, corner, described, is_hopper, load_tile, store_tile
from tokenbus.kernels.launch import ceil_div, num_processors

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.activation import ActivationKind

# Rows of a tile and of one group of warps, outputs of one of the two products of a tile, columns of
# a step.
TILE_ROWS = gl.constexpr(128)
WAVE_ROWS = gl.constexpr(64)
TILE_OUTS = gl.constexpr(128)
STEP_COLUMNS = gl.constexpr(64)
# Steps in flight, and tiles of rows that are worked on together.
STAGES, GROUP = 4, 8
# Rows from which on tiles this large pay, and how many a multiprocessor has of them. On an H200, in
# us, gates of the 0.6B shape take 37 for the 48 of cuBLAS and the activation at 2,048 rows, with
# 2.9; `qkv` of 8B takes 159 for 170 there, and 147 for 119 at 1,500, whose last turn is empty.
_LEAST_ROWS, _LEAST_TILES = 1920, 1.9
# Rows that a warm-up takes: larger passes are not the first to ask for the kernels.
_WARM_ROWS = 2048
_DTYPES = (torch.bfloat16, torch.float16)


@gluon.jit
def room(x, weight, out, STAGES: gl.constexpr):
    """Return room for the steps in flight and for what is written, and the barriers of steps."""
    values = gl.allocate_shared_memory(x.dtype, [STAGES, TILE_ROWS, STEP_COLUMNS], x.layout)
    shape: gl.constexpr = [STAGES, TILE_OUTS, STEP_COLUMNS]
    firsts = gl.allocate_shared_memory(weight.dtype, shape, weight.layout)
    seconds = gl.allocate_shared_memory(weight.dtype, shape, weight.layout)
    buffers = gl.allocate_shared_memory(out.dtype, [2, WAVE_ROWS, TILE_OUTS], out.layout)
    ready, free = barriers(STAGES, 1, 2)
    return values, firsts, seconds, buffers, ready, free


@gluon.jit
def fetch(x, weight, values, firsts, seconds, ready, free, tiles, M, WIDTH, between,
          K: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr,
          OUTS: gl.constexpr):  # fmt: skip
    """Fetch the steps of this program's tiles, one after the other, as room for them is free."""
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, col = corner(tile, M, WIDTH, GROUP, TILE_ROWS, OUTS)
        for step in range((K + STEP_COLUMNS - 1) // STEP_COLUMNS):
            slot = turn % STAGES
            mbarrier.wait(free.index(slot), (turn // STAGES & 1) ^ 1)
            mbarrier.expect(ready.index(slot), (TILE_ROWS + 2 * TILE_OUTS) * STEP_COLUMNS * 2)
            at = step * STEP_COLUMNS
            load_tile(x, [row, at], ready.index(slot), values.index(slot))
            load_tile(weight, [col, at], ready.index(slot), firsts.index(slot))
            load_tile(weight, [col + between, at], ready.index(slot), seconds.index(slot))
            turn += 1


@gluon.jit
def products(values, firsts, seconds, ready, free, turn, K: gl.constexpr, STAGES: gl.constexpr,
              WHICH: gl.constexpr):  # fmt: skip
    """Multiply half the rows of a tile by both of its weights, from step `turn` of all on."""
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    first = gl.zeros([WAVE_ROWS, TILE_OUTS], gl.float32, layout=mma)
    second = gl.zeros([WAVE_ROWS, TILE_OUTS], gl.float32, layout=mma)
    STEPS: gl.constexpr = (K + STEP_COLUMNS - 1) // STEP_COLUMNS
    for step in range(STEPS):
        slot = (turn + step) % STAGES
        mbarrier.wait(ready.index(slot), (turn + step) // STAGES & 1)
        left = values.index(slot).slice(WHICH * WAVE_ROWS, WAVE_ROWS)
        first = warpgroup_mma(left, firsts.index(slot).permute((1, 0)), first, is_async=True)
        second = warpgroup_mma(left, seconds.index(slot).permute((1, 0)), second, is_async=True)
        # The products of the step before are there, its slot is free.
        first, second = warpgroup_mma_wait(2, deps=[first, second])
        if step > 0:
            tl.debug_barrier()
            mbarrier.arrive(free.index((turn + step + STAGES - 1) % STAGES), count=1)
    first, second = warpgroup_mma_wait(0, deps=[first, second])
    tl.debug_barrier()
    mbarrier.arrive(free.index((turn + STEPS + STAGES - 1) % STAGES), count=1)
    return first, second


@gluon.jit
def _multiply(out, values, firsts, seconds, buffers, ready, free, tiles, M, WIDTH,
              K: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr,
              ACT: gl.constexpr, WHICH: gl.constexpr):  # fmt: skip
    """Multiply half the rows of this program's tiles: WHICH half."""
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, col = corner(tile, M, WIDTH, GROUP, TILE_ROWS, TILE_OUTS)
        row += WHICH * WAVE_ROWS
        first, second = products(values, firsts, seconds, ready, free, turn, K, STAGES, WHICH)
        turn += (K + STEP_COLUMNS - 1) // STEP_COLUMNS
        tma.store_wait(0)
        tl.debug_barrier()
        buffers.index(WHICH).store((gate(first, ACT) * second).to(buffers.dtype))
        fence_async_shared()
        tl.debug_barrier()
        store_tile(out, [row, col], buffers.index(WHICH))
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["M"])
def _many_rows_kernel(
    x, weight, out, M, WIDTH, K: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr,
    ACT: gl.constexpr,
):  # fmt: skip
    """Compute [M, WIDTH] outputs tile by tile; x, weight and out are tensor descriptors.

    A tile has 128 of them, each a gate times what it gates. What lies beyond an edge arrives as
    zeros or as other outputs, and is not written.
    """
    values, firsts, seconds, buffers, ready, free = room(x, weight, out, STAGES)
    tiles = gl.cdiv(M, TILE_ROWS) * gl.cdiv(WIDTH, TILE_OUTS)
    gl.warp_specialize(
        [
            (_multiply, (out, values, firsts, seconds, buffers, ready, free, tiles, M, WIDTH, K,
                         STAGES, GROUP, ACT, 0)),
            (_multiply, (out, values, firsts, seconds, buffers, ready, free, tiles, M, WIDTH, K,
                         STAGES, GROUP, ACT, 1)),
            (fetch, (x, weight, values, firsts, seconds, ready, free, tiles, M, WIDTH, WIDTH, K,
                     STAGES, GROUP, TILE_OUTS)),
        ],
        [4, 1],
        # Registers of those who multiply and of the one who fetches, of 65,536 for all.
        [232, 40],
    )  # fmt: skip


def takes_many_rows(x: Tensor, weight: Tensor, outs: int) -> bool:
    """Say whether rows fill the tiles of a device that has what the kernels are made of.

    outs: outputs of a row of what is written.
    """
    if not is_hopper(x.device) or x.dtype not in _DTYPES or x.shape[1] % 8 or outs % 8:
        return False
    rows = min(x.shape[0], _WARM_ROWS)
    tiles = ceil_div(rows, TILE_ROWS.value) * ceil_div(weight.shape[0], 2 * TILE_OUTS.value)
    return rows >= _LEAST_ROWS and tiles >= _LEAST_TILES * num_processors(x.device)


def many_rows(x: Tensor, weight: Tensor, act: ActivationKind) -> Tensor:
    """Multiply many rows by gates and by what these gate.

    Args:
        x: [M, K], contiguous, as `takes_many_rows` asks. weight: [2 N, K], contiguous, gates first.
    Returns: [M, N], dtype of x; sums and activation in fp32. Twin: reference.fused_linear.
    """
    num_rows, width_in = x.shape
    width_out = weight.shape[0] // 2
    out = x.new_empty(num_rows, width_out)
    tiles = ceil_div(num_rows, TILE_ROWS.value) * ceil_div(width_out, TILE_OUTS.value)
    _many_rows_kernel[(min(num_processors(x.device), tiles),)](
        described(x, TILE_ROWS.value, STEP_COLUMNS.value),
        described(weight, TILE_OUTS.value, STEP_COLUMNS.value),
        described(out, WAVE_ROWS.value, TILE_OUTS.value),
        num_rows,
        width_out,
        K=width_in,
        STAGES=STAGES,
        GROUP=GROUP,
        ACT=act,
        num_warps=4,
    )
    return out
