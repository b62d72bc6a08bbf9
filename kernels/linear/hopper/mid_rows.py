"""Gates of 161 to 192 rows for Hopper: every weight is read once, for all rows.

One warp fetches, three groups of four multiply 64 rows each by all outputs of a tile, and write
them behind the activation. Gluon has no interpreter: under Triton's, and on other GPUs, cuBLAS
multiplies.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from tokenbus.kernels.activation import gate
from tokenbus.kernels.hopper import barriers, described, is_hopper, load_tile
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    num_processors,
    release_successor,
    require,
    wait_for_inputs,
)

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.activation import ActivationKind

# Rows of a group of warps and the groups, gates of a tile, columns of a step and steps in flight:
# 224 KiB of a multiprocessor's 227.
WAVE_ROWS = gl.constexpr(64)
WAVES = gl.constexpr(3)
TILE_OUTS = gl.constexpr(128)
STEP_COLUMNS = gl.constexpr(64)
STAGES = gl.constexpr(4)
# Rows beyond which cuBLAS takes larger tiles and falls behind, and up to which there is room. On an
# H200, in us, gates of the 8B shape take 72.9 for the 81.9 of cuBLAS and the activation at 185 rows
# and 74.7 for 82.8 at 192, but 72.9 for 73.0 at 160.
_LEAST_ROWS, _MOST_ROWS = 161, 192
# Multiprocessors that have a tile, of all. None may have two, and where many have none their memory
# traffic is missing: 14,336 gates fill 112 of 132.
_LEAST_FILLED = 0.8
_DTYPES = (torch.bfloat16, torch.float16)


@gluon.jit
def _fetch(x, weight, values, firsts, seconds, ready, free, WIDTH, K: gl.constexpr,
           PDL: gl.constexpr):  # fmt: skip
    """Fetch the steps of this program's tile, weights ahead of the end of earlier kernels."""
    STEPS: gl.constexpr = (K + STEP_COLUMNS - 1) // STEP_COLUMNS
    AHEAD: gl.constexpr = STAGES if STEPS > STAGES else STEPS  # noqa: FURB136
    BYTES: gl.constexpr = (WAVES * WAVE_ROWS + 2 * TILE_OUTS) * STEP_COLUMNS * 2
    col = gl.program_id(0) * TILE_OUTS
    for step in gl.static_range(AHEAD):
        mbarrier.expect(ready.index(step), BYTES)
        at = step * STEP_COLUMNS
        load_tile(weight, [col, at], ready.index(step), firsts.index(step))
        load_tile(weight, [WIDTH + col, at], ready.index(step), seconds.index(step))
    wait_for_inputs(PDL)
    for step in gl.static_range(AHEAD):
        for wave in gl.static_range(WAVES):
            load_tile(x, [wave * WAVE_ROWS, step * STEP_COLUMNS], ready.index(step),
                      values.index(step * WAVES + wave))  # fmt: skip
    for step in range(AHEAD, STEPS):
        slot = step % STAGES
        mbarrier.wait(free.index(slot), (step // STAGES & 1) ^ 1)
        mbarrier.expect(ready.index(slot), BYTES)
        at = step * STEP_COLUMNS
        load_tile(weight, [col, at], ready.index(slot), firsts.index(slot))
        load_tile(weight, [WIDTH + col, at], ready.index(slot), seconds.index(slot))
        for wave in gl.static_range(WAVES):
            load_tile(x, [wave * WAVE_ROWS, at], ready.index(slot),
                      values.index(slot * WAVES + wave))  # fmt: skip


@gluon.jit
def _products(values, firsts, seconds, ready, free, K: gl.constexpr, WHICH: gl.constexpr):
    """Multiply 64 rows by both weights of a tile."""
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    first = gl.zeros([WAVE_ROWS, TILE_OUTS], gl.float32, layout=mma)
    second = gl.zeros([WAVE_ROWS, TILE_OUTS], gl.float32, layout=mma)
    for step in range((K + STEP_COLUMNS - 1) // STEP_COLUMNS):
        slot = step % STAGES
        mbarrier.wait(ready.index(slot), step // STAGES & 1)
        left = values.index(slot * WAVES + WHICH)
        first = warpgroup_mma(left, firsts.index(slot).permute((1, 0)), first, is_async=True)
        second = warpgroup_mma(left, seconds.index(slot).permute((1, 0)), second, is_async=True)
        # The products of the step before are there, its slot is free.
        first, second = warpgroup_mma_wait(2, deps=[first, second])
        if step > 0:
            tl.debug_barrier()
            mbarrier.arrive(free.index((step + STAGES - 1) % STAGES), count=1)
    first, second = warpgroup_mma_wait(0, deps=[first, second])
    return first, second


@gluon.jit
def _multiply(out, values, firsts, seconds, ready, free, M, WIDTH, K: gl.constexpr,
              ACT: gl.constexpr, WHICH: gl.constexpr):  # fmt: skip
    """Compute 64 rows of this program's tile: WHICH of them."""
    first, second = _products(values, firsts, seconds, ready, free, K, WHICH)
    acc = gate(first, ACT) * second
    rows = WHICH * WAVE_ROWS + gl.arange(0, WAVE_ROWS, layout=gl.SliceLayout(1, acc.type.layout))
    cols = gl.arange(0, TILE_OUTS, layout=gl.SliceLayout(0, acc.type.layout))
    cols += gl.program_id(0) * TILE_OUTS
    live = (rows < M)[:, None] & (cols < WIDTH)[None, :]
    place = out + rows[:, None].to(gl.int64) * WIDTH + cols[None, :]
    gl.store(place, acc.to(out.dtype.element_ty), mask=live)


@gluon.jit(do_not_specialize=["M"])
def _mid_rows_kernel(
    x, weight, out, M, WIDTH, K: gl.constexpr, ACT: gl.constexpr, PDL: gl.constexpr
):
    """Compute 128 of [M, WIDTH] outputs, each a gate times what it gates; x, weight: descriptors.

    What lies beyond an edge arrives as zeros or as other outputs, and is not written.
    """
    release_successor(PDL)
    values = gl.allocate_shared_memory(x.dtype, [STAGES * WAVES, WAVE_ROWS, STEP_COLUMNS], x.layout)
    shape: gl.constexpr = [STAGES, TILE_OUTS, STEP_COLUMNS]
    firsts = gl.allocate_shared_memory(weight.dtype, shape, weight.layout)
    seconds = gl.allocate_shared_memory(weight.dtype, shape, weight.layout)
    ready, free = barriers(STAGES, 1, WAVES)
    gl.warp_specialize(
        [
            (_multiply, (out, values, firsts, seconds, ready, free, M, WIDTH, K, ACT, 0)),
            (_multiply, (out, values, firsts, seconds, ready, free, M, WIDTH, K, ACT, 1)),
            (_multiply, (out, values, firsts, seconds, ready, free, M, WIDTH, K, ACT, 2)),
            (_fetch, (x, weight, values, firsts, seconds, ready, free, WIDTH, K, PDL)),
        ],
        [4, 4, 1],
        # Registers of those who multiply and of the one who fetches, of 65,536 for all.
        [160, 160, 32],
    )


def takes_mid_rows(x: Tensor, weight: Tensor) -> bool:
    """Say whether `mid_rows` is quicker than cuBLAS for rows x and gates [2 N, K] of a device."""
    num_rows, width_in = x.shape
    if not _LEAST_ROWS <= num_rows <= _MOST_ROWS or x.dtype not in _DTYPES or width_in % 8:
        return False
    if not is_hopper(x.device):
        return False
    tiles, processors = ceil_div(weight.shape[0] // 2, TILE_OUTS.value), num_processors(x.device)
    return _LEAST_FILLED * processors <= tiles <= processors


def mid_rows(x: Tensor, weight: Tensor, act: ActivationKind) -> Tensor:
    """Multiply up to 192 rows by gates and by what these gate.

    Args:
        x: [M, K], contiguous, 8 divides K. weight: [2 N, K], contiguous, gates first.
    Returns: [M, N], dtype of x; sums and activation in fp32. Twin: reference.fused_linear.
    Raises: KernelInputError for more rows.
    """
    num_rows, width_in = x.shape
    require(num_rows <= _MOST_ROWS, f"{num_rows} rows, at most {_MOST_ROWS} are taken")
    width_out = weight.shape[0] // 2
    out = x.new_empty(num_rows, width_out)
    _mid_rows_kernel[(ceil_div(width_out, TILE_OUTS.value),)](
        described(x, WAVE_ROWS.value, STEP_COLUMNS.value),
        described(weight, TILE_OUTS.value, STEP_COLUMNS.value),
        out,
        num_rows,
        width_out,
        K=width_in,
        ACT=act,
        num_warps=4,
        **dependent_launch(x.device),
    )
    return out
