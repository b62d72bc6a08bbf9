"""Products of 65 to 256 rows for Hopper: every weight is read once, for all rows.

One warp fetches, groups of four multiply 64 rows each by all outputs of a tile. Where there are
fewer tiles than multiprocessors, programs share the columns of one. Gluon has no interpreter: under
Triton's, and on other GPUs, cuBLAS multiplies.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from tokenbus.kernels.activation import gate
from tokenbus.kernels.hopper import barriers, described, load_tile
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    release_successor,
    require,
    wait_for_inputs,
)

if TYPE_CHECKING:
    from torch import Tensor

# Rows of a group of warps, and columns of a step.
WAVE_ROWS = gl.constexpr(64)
STEP_COLUMNS = gl.constexpr(64)
# Counts of programs that meet over a piece of a tile.
_MAX_MEETINGS = 4096


@dataclass(frozen=True, slots=True)
class MidRowsTuning:
    """How one shape is laid out.

    outs: outputs of one of the two products of a tile. stages: steps in flight. splits: programs
    that share the columns of a tile. apart: whether their sums are added up by a launch behind,
    and not by themselves once all have ended.
    """

    outs: int
    stages: int
    splits: int = 1
    apart: bool = False


@gluon.jit
def _fetch(x, weight, values, firsts, seconds, ready, free, tiles, between, K: gl.constexpr,
           SPLITS: gl.constexpr, STAGES: gl.constexpr, WAVES: gl.constexpr, OUTS: gl.constexpr,
           SPREAD: gl.constexpr, PDL: gl.constexpr):  # fmt: skip
    """Fetch the steps of this program's tile, weights ahead of the end of earlier kernels."""
    STEPS: gl.constexpr = (K + SPLITS * STEP_COLUMNS - 1) // (SPLITS * STEP_COLUMNS)
    AHEAD: gl.constexpr = STAGES if STEPS > STAGES else STEPS  # noqa: FURB136
    BYTES: gl.constexpr = (WAVES * WAVE_ROWS + 2 * OUTS) * STEP_COLUMNS * 2
    col = gl.program_id(0) % tiles * SPREAD
    begin = gl.program_id(0) // tiles * (STEPS * STEP_COLUMNS)
    for step in gl.static_range(AHEAD):
        mbarrier.expect(ready.index(step), BYTES)
        at = begin + step * STEP_COLUMNS
        load_tile(weight, [col, at], ready.index(step), firsts.index(step))
        load_tile(weight, [col + between, at], ready.index(step), seconds.index(step))
    wait_for_inputs(PDL)
    for step in gl.static_range(AHEAD):
        for wave in gl.static_range(WAVES):
            load_tile(x, [wave * WAVE_ROWS, begin + step * STEP_COLUMNS], ready.index(step),
                      values.index(step * WAVES + wave))  # fmt: skip
    for step in range(AHEAD, STEPS):
        slot = step % STAGES
        mbarrier.wait(free.index(slot), (step // STAGES & 1) ^ 1)
        mbarrier.expect(ready.index(slot), BYTES)
        at = begin + step * STEP_COLUMNS
        load_tile(weight, [col, at], ready.index(slot), firsts.index(slot))
        load_tile(weight, [col + between, at], ready.index(slot), seconds.index(slot))
        for wave in gl.static_range(WAVES):
            load_tile(x, [wave * WAVE_ROWS, at], ready.index(slot),
                      values.index(slot * WAVES + wave))  # fmt: skip


@gluon.jit
def _products(values, firsts, seconds, ready, free, STEPS: gl.constexpr, STAGES: gl.constexpr,
              WAVES: gl.constexpr, OUTS: gl.constexpr, WHICH: gl.constexpr):  # fmt: skip
    """Multiply 64 rows by both weights of a tile."""
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, OUTS, 16])
    first = gl.zeros([WAVE_ROWS, OUTS], gl.float32, layout=mma)
    second = gl.zeros([WAVE_ROWS, OUTS], gl.float32, layout=mma)
    for step in range(STEPS):
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
def _write(out, acc, row, col, M, WIDTH):
    """Write 64 rows of some outputs, what lies beyond an edge not."""
    rows = row + gl.arange(0, acc.shape[0], layout=gl.SliceLayout(1, acc.type.layout))
    cols = col + gl.arange(0, acc.shape[1], layout=gl.SliceLayout(0, acc.type.layout))
    place = rows[:, None].to(gl.int64) * WIDTH + cols[None, :]
    live = (rows < M)[:, None] & (cols < WIDTH)[None, :]
    gl.store(out + place, acc.to(out.dtype.element_ty), mask=live)


@gluon.jit
def _leave(parts, acc, row, col, M, WIDTH):
    """Leave the sums of 64 rows, fp32."""
    rows = row + gl.arange(0, acc.shape[0], layout=gl.SliceLayout(1, acc.type.layout))
    cols = col + gl.arange(0, acc.shape[1], layout=gl.SliceLayout(0, acc.type.layout))
    place = rows[:, None] * WIDTH + cols[None, :]
    live = (rows < M)[:, None] & (cols < WIDTH)[None, :]
    gl.store(parts + place, acc, mask=live, cache_modifier=".cg")


@gluon.jit
def _sum_share(out, parts, part, row, col, M, WIDTH, SPLITS: gl.constexpr, OUTS: gl.constexpr):
    """Add up all sums of this program's share of 64 rows, in the order of the columns."""
    SHARE: gl.constexpr = WAVE_ROWS // SPLITS
    flat: gl.constexpr = gl.BlockedLayout([1, 4], [128 // OUTS, OUTS // 4], [4, 1], [1, 0])
    rows = row + part * SHARE + gl.arange(0, SHARE, layout=gl.SliceLayout(1, flat))
    cols = col + gl.arange(0, OUTS, layout=gl.SliceLayout(0, flat))
    live = (rows < M)[:, None] & (cols < WIDTH)[None, :]
    place = rows[:, None] * WIDTH + cols[None, :]
    acc = gl.load(parts + place, mask=live, other=0.0, cache_modifier=".cg")
    for other in gl.static_range(1, SPLITS):
        at = parts + other * M * WIDTH + place
        acc += gl.load(at, mask=live, other=0.0, cache_modifier=".cg")
    gl.store(out + place, acc.to(out.dtype.element_ty), mask=live)


@gluon.jit
def _meet(arrivals, place, SPLITS: gl.constexpr):
    """Wait until all programs of a tile left their sums, and leave counts of zero behind."""
    tl.debug_barrier()
    count = gl.atomic_add(arrivals + 2 * place, 1, sem="acq_rel", scope="gpu") + 1
    while count < SPLITS:
        count = gl.atomic_add(arrivals + 2 * place, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()
    if gl.atomic_add(arrivals + 2 * place + 1, 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
        gl.store(arrivals + 2 * place, 0)
        gl.store(arrivals + 2 * place + 1, 0)


@gluon.jit
def _multiply(out, parts, arrivals, values, firsts, seconds, ready, free, tiles, M, WIDTH,
              K: gl.constexpr, SPLITS: gl.constexpr, STAGES: gl.constexpr, WAVES: gl.constexpr,
              OUTS: gl.constexpr, ACT: gl.constexpr, APART: gl.constexpr,
              WHICH: gl.constexpr):  # fmt: skip
    """Compute 64 rows of this program's tile: WHICH of them."""
    STEPS: gl.constexpr = (K + SPLITS * STEP_COLUMNS - 1) // (SPLITS * STEP_COLUMNS)
    row: gl.constexpr = WHICH * WAVE_ROWS
    first, second = _products(
        values, firsts, seconds, ready, free, STEPS, STAGES, WAVES, OUTS, WHICH
    )
    tile = gl.program_id(0) % tiles
    if ACT != "none":
        _write(out, gate(first, ACT) * second, row, tile * OUTS, M, WIDTH)
    elif SPLITS == 1:
        _write(out, first, row, tile * (2 * OUTS), M, WIDTH)
        _write(out, second, row, tile * (2 * OUTS) + OUTS, M, WIDTH)
    else:
        part = gl.program_id(0) // tiles
        col = tile * (2 * OUTS)
        own = parts + part * M * WIDTH
        _leave(own, first, row, col, M, WIDTH)
        _leave(own, second, row, col + OUTS, M, WIDTH)
        if not APART:
            _meet(arrivals, tile * WAVES + WHICH, SPLITS)
            _sum_share(out, parts, part, row, col, M, WIDTH, SPLITS, OUTS)
            _sum_share(out, parts, part, row, col + OUTS, M, WIDTH, SPLITS, OUTS)


@gluon.jit(do_not_specialize=["M"])
def mid_rows_kernel(
    x, weight, out, parts, arrivals, tiles, M, WIDTH, between, K: gl.constexpr,
    SPLITS: gl.constexpr, STAGES: gl.constexpr, WAVES: gl.constexpr, OUTS: gl.constexpr,
    ACT: gl.constexpr, APART: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """Compute a tile of [M, WIDTH] outputs, or its part of their sums; x, weight are descriptors.

    A tile has OUTS gates and what they gate, or two times OUTS outputs. What lies beyond an edge
    arrives as zeros or as other outputs, and is not written.
    """
    release_successor(PDL)
    SPREAD: gl.constexpr = OUTS if ACT != "none" else 2 * OUTS
    values = gl.allocate_shared_memory(x.dtype, [STAGES * WAVES, WAVE_ROWS, STEP_COLUMNS], x.layout)
    firsts = gl.allocate_shared_memory(weight.dtype, [STAGES, OUTS, STEP_COLUMNS], weight.layout)
    seconds = gl.allocate_shared_memory(weight.dtype, [STAGES, OUTS, STEP_COLUMNS], weight.layout)
    ready, free = barriers(STAGES, 1, WAVES)
    if WAVES == 2:
        gl.warp_specialize(
            [
                (_multiply, (out, parts, arrivals, values, firsts, seconds, ready, free, tiles, M,
                             WIDTH, K, SPLITS, STAGES, WAVES, OUTS, ACT, APART, 0)),
                (_multiply, (out, parts, arrivals, values, firsts, seconds, ready, free, tiles, M,
                             WIDTH, K, SPLITS, STAGES, WAVES, OUTS, ACT, APART, 1)),
                (_fetch, (x, weight, values, firsts, seconds, ready, free, tiles, between, K,
                          SPLITS, STAGES, WAVES, OUTS, SPREAD, PDL)),
            ],
            [4, 1],
            [232, 40],
        )  # fmt: skip
    elif WAVES == 3:
        gl.warp_specialize(
            [
                (_multiply, (out, parts, arrivals, values, firsts, seconds, ready, free, tiles, M,
                             WIDTH, K, SPLITS, STAGES, WAVES, OUTS, ACT, APART, 0)),
                (_multiply, (out, parts, arrivals, values, firsts, seconds, ready, free, tiles, M,
                             WIDTH, K, SPLITS, STAGES, WAVES, OUTS, ACT, APART, 1)),
                (_multiply, (out, parts, arrivals, values, firsts, seconds, ready, free, tiles, M,
                             WIDTH, K, SPLITS, STAGES, WAVES, OUTS, ACT, APART, 2)),
                (_fetch, (x, weight, values, firsts, seconds, ready, free, tiles, between, K,
                          SPLITS, STAGES, WAVES, OUTS, SPREAD, PDL)),
            ],
            [4, 4, 1],
            [160, 160, 32],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_multiply, (out, parts, arrivals, values, firsts, seconds, ready, free, tiles, M,
                             WIDTH, K, SPLITS, STAGES, WAVES, OUTS, ACT, APART, 0)),
                (_multiply, (out, parts, arrivals, values, firsts, seconds, ready, free, tiles, M,
                             WIDTH, K, SPLITS, STAGES, WAVES, OUTS, ACT, APART, 1)),
                (_multiply, (out, parts, arrivals, values, firsts, seconds, ready, free, tiles, M,
                             WIDTH, K, SPLITS, STAGES, WAVES, OUTS, ACT, APART, 2)),
                (_multiply, (out, parts, arrivals, values, firsts, seconds, ready, free, tiles, M,
                             WIDTH, K, SPLITS, STAGES, WAVES, OUTS, ACT, APART, 3)),
                (_fetch, (x, weight, values, firsts, seconds, ready, free, tiles, between, K,
                          SPLITS, STAGES, WAVES, OUTS, SPREAD, PDL)),
            ],
            [4, 4, 4, 1],
            [112, 112, 112, 32],
        )  # fmt: skip


@triton.jit(do_not_specialize=["total"])
def _sum_kernel(parts, out, total, SPLITS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Add up the sums of all parts, in their order."""
    release_successor(PDL)
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = offs < total
    wait_for_inputs(PDL)
    acc = tl.load(parts + offs, mask=live, other=0.0)
    for part in tl.static_range(1, SPLITS):
        acc += tl.load(parts + part * total + offs, mask=live, other=0.0)
    tl.store(out + offs, acc.to(out.dtype.element_ty), mask=live)


@cache
def _arrivals(device: torch.device) -> Tensor:
    """Return the counts of programs that meet, zero between launches."""
    return torch.zeros(2 * _MAX_MEETINGS, dtype=torch.int32, device=device)


def mid_rows(x: Tensor, weight: Tensor, tuning: MidRowsTuning, act: str = "none") -> Tensor:
    """Multiply 65 to 256 rows by weights, or by gates and by what these gate.

    Args:
        x: [M, K], contiguous. weight: [N, K], contiguous; with an activation gates first.
        act: `none` or one of activation.KINDS.
    Returns: [M, N], or [M, N / 2] behind an activation, dtype of x; sums and activation in fp32.
    """
    num_rows, width_in = x.shape
    gated = act != "none"
    width_out = weight.shape[0] // 2 if gated else weight.shape[0]
    waves = max(2, ceil_div(num_rows, WAVE_ROWS.value))
    splits, outs = tuning.splits, tuning.outs
    require(waves <= 4, f"{num_rows} rows, at most 256 are taken")
    require(not gated or splits == 1, "gates have whole columns")
    spread = outs if gated else 2 * outs
    tiles = ceil_div(width_out, spread)
    out = x.new_empty(num_rows, width_out)
    parts = out
    if splits > 1:
        parts = torch.empty(splits, num_rows, width_out, dtype=torch.float32, device=x.device)
    mid_rows_kernel[(tiles * splits,)](
        described(x, WAVE_ROWS.value, STEP_COLUMNS.value),
        described(weight, outs, STEP_COLUMNS.value),
        out,
        parts,
        _arrivals(x.device),
        tiles,
        num_rows,
        width_out,
        width_out if gated else outs,
        K=width_in,
        SPLITS=splits,
        STAGES=tuning.stages,
        WAVES=waves,
        OUTS=outs,
        ACT=act,
        APART=tuning.apart,
        num_warps=4,
        **dependent_launch(x.device),
    )
    if splits > 1 and tuning.apart:
        total = num_rows * width_out
        _sum_kernel[(ceil_div(total, 2048),)](
            parts, out, total, SPLITS=splits, BLOCK=2048, num_warps=4,
            **dependent_launch(x.device),
        )  # fmt: skip
    return out
