"""FP8 products of many rows over blocks of weights, for Hopper: each step's sums are scaled apart.

One warp fetches, two groups of four warps multiply half a tile each: while one group scales what it
found, the matrix units work for the other. Of tiles of 128 rows a group has two steps under way.
Tiles of 256 take less from the L2 cache: with thousands of rows the chip is short of power. Gluon
has no interpreter: where that runs, and on other GPUs, `fp8_matmul_kernel` is what multiplies.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

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

from tokenbus.kernels.hopper import barriers, corner, described, load_tile, store_tile, sum_parts
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    num_processors,
    release_successor,
    require,
    wait_for_inputs,
)
from tokenbus.kernels.quantize import GROUP

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.quantize import QuantizedRows

# Columns of a step and outputs of a tile: a block of the weight.
_BLOCK = gl.constexpr(GROUP)
# Rows of one product of a group of warps.
_WAVE = gl.constexpr(64)


@dataclass(frozen=True, slots=True)
class BlocksTuning:
    """How many rows are laid out: 128 or 256 of a tile, steps in flight, row tiles worked together.

    splits: programs that share the columns of a tile of 128 rows; the last of them to end adds up
    what all found.
    """

    block_m: int
    stages: int
    group: int
    splits: int = 1
    # Columns of a step.
    block_k: ClassVar[int] = GROUP


@gluon.jit
def _fetch(x, weight, values, weights, ready, free, items, M, N, SPAN: gl.constexpr,
           BLOCK_M: gl.constexpr, SPLITS: gl.constexpr, STAGES: gl.constexpr,
           GROUP: gl.constexpr):  # fmt: skip
    """Fetch the steps of this program's tiles, one after the other, as room for them is free."""
    turn = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        row, col = corner(item // SPLITS, M, N, GROUP, BLOCK_M, _BLOCK)
        begin = item % SPLITS * SPAN
        for step in range(begin, begin + SPAN):
            slot = turn % STAGES
            mbarrier.wait(free.index(slot), (turn // STAGES & 1) ^ 1)
            mbarrier.expect(ready.index(slot), (BLOCK_M + _BLOCK) * _BLOCK)
            load_tile(x, [row, step * _BLOCK], ready.index(slot), values.index(slot))
            load_tile(weight, [col, step * _BLOCK], ready.index(slot), weights.index(slot))
            turn += 1


@gluon.jit
def step_scales(by_row, live, group_stride, by_block, step, GROUPS: gl.constexpr):
    """Load the scales of rows and of a block; beyond the last block all numbers are zero."""
    at = gl.minimum(step, GROUPS - 1)
    return gl.load(by_row + at * group_stride, mask=live, other=0.0), gl.load(by_block + at)


@gluon.jit
def begin_product(values, weights, slot, product, FIRST: gl.constexpr):
    """Begin to multiply 64 rows of a step; `product` gives its registers."""
    left, right = values.index(slot).slice(FIRST, _WAVE), weights.index(slot).permute((1, 0))
    return warpgroup_mma(left, right, product, use_acc=False, is_async=True)


@gluon.jit
def end_product(product, acc, factor, free, slot, PENDING: gl.constexpr):
    """Wait for all products but the PENDING latest, and add one to the sums, scaled."""
    product = warpgroup_mma_wait(PENDING, deps=[product])
    tl.debug_barrier()
    mbarrier.arrive(free.index(slot), count=1)
    return product, acc + product * factor[:, None]


@gluon.jit
def _by_pairs(values, weights, ready, free, zero, by_row, live, group_stride, by_block, begin, turn,
              GROUPS: gl.constexpr, SPAN: gl.constexpr, STAGES: gl.constexpr,
              FIRST: gl.constexpr):  # fmt: skip
    """Sum the products of 64 rows, two steps under way.

    Scales are asked for two steps before, and waited for at the end of a pair of steps, for a wait
    in the middle waits for all that were asked for in it.
    """
    even, odd, acc = zero, zero, zero
    a, b = step_scales(by_row, live, group_stride, by_block, begin, GROUPS)
    c, d = step_scales(by_row, live, group_stride, by_block, begin + 1, GROUPS)
    even_factor, odd_factor = a * b, c * d
    for step in range(begin + 2, begin + 2 + SPAN, 2):
        slot, other = turn % STAGES, (turn + 1) % STAGES
        a, b = step_scales(by_row, live, group_stride, by_block, step, GROUPS)
        c, d = step_scales(by_row, live, group_stride, by_block, step + 1, GROUPS)
        mbarrier.wait(ready.index(slot), turn // STAGES & 1)
        even = begin_product(values, weights, slot, even, FIRST)
        mbarrier.wait(ready.index(other), (turn + 1) // STAGES & 1)
        odd = begin_product(values, weights, other, odd, FIRST)
        even, acc = end_product(even, acc, even_factor, free, slot, 1)
        odd, acc = end_product(odd, acc, odd_factor, free, other, 0)
        even_factor, odd_factor = a * b, c * d
        turn += 2
    return acc, turn


@gluon.jit
def _by_waves(values, weights, ready, free, zero, by_row, live, low_live, group_stride, by_block,
              turn, GROUPS: gl.constexpr, SPAN: gl.constexpr, STAGES: gl.constexpr,
              FIRST: gl.constexpr):  # fmt: skip
    """Sum the products of 64 rows and of 64 below, a step after the other.

    There are no registers for a second product, nor for products of scales.
    """
    product, acc, low = zero, zero, zero
    row_scale, block_scale = step_scales(by_row, live, group_stride, by_block, 0, GROUPS)
    low_scale, _ = step_scales(by_row + _WAVE, low_live, group_stride, by_block, 0, GROUPS)
    for step in range(1, SPAN + 1):
        slot = turn % STAGES
        next_row, next_block = step_scales(by_row, live, group_stride, by_block, step, GROUPS)
        next_low, _ = step_scales(by_row + _WAVE, low_live, group_stride, by_block, step, GROUPS)
        mbarrier.wait(ready.index(slot), turn // STAGES & 1)
        product = begin_product(values, weights, slot, product, FIRST)
        product = warpgroup_mma_wait(0, deps=[product])
        acc += product * (row_scale * block_scale)[:, None]
        product = begin_product(values, weights, slot, product, FIRST + _WAVE)
        product, low = end_product(product, low, low_scale * block_scale, free, slot, 0)
        row_scale, low_scale, block_scale = next_row, next_low, next_block
        turn += 1
    return acc, low, turn


@gluon.jit
def _store(acc, bias, buffer, out, row, col, N):
    """Write 64 rows of sums from where the copy engine takes them."""
    if bias is not None:
        outs = col + gl.arange(0, _BLOCK, layout=gl.SliceLayout(0, acc.type.layout))
        acc += gl.load(bias + outs, mask=outs < N, other=0.0).to(gl.float32)[None, :]
    tma.store_wait(0)
    tl.debug_barrier()
    buffer.store(acc.to(buffer.dtype))
    fence_async_shared()
    tl.debug_barrier()
    store_tile(out, [row, col], buffer)


@gluon.jit
def _multiply(x_scales, group_stride, scales, bias, out, parts, arrivals, values, weights, buffers,
              ready, free, items, M, N, GROUPS: gl.constexpr, SPAN: gl.constexpr,
              BLOCK_M: gl.constexpr, BLOCK_OUT: gl.constexpr, SPLITS: gl.constexpr,
              STAGES: gl.constexpr, GROUP: gl.constexpr, WHICH: gl.constexpr):  # fmt: skip
    """Multiply half the rows of this program's tiles: WHICH half."""
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 32])
    FIRST: gl.constexpr = WHICH * (BLOCK_M // 2)
    zero = gl.zeros([_WAVE, _BLOCK], gl.float32, layout=mma)
    turn = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        tile, part = item // SPLITS, item % SPLITS
        row, col = corner(tile, M, N, GROUP, BLOCK_M, _BLOCK)
        row += FIRST
        rows = row + gl.arange(0, _WAVE, layout=gl.SliceLayout(1, mma))
        by_row, live, by_block = x_scales + rows, rows < M, scales + col // BLOCK_OUT * GROUPS
        is_last = True
        if BLOCK_M > 2 * _WAVE:
            acc, low, turn = _by_waves(values, weights, ready, free, zero, by_row, live,
                                       rows + _WAVE < M, group_stride, by_block, turn, GROUPS, SPAN,
                                       STAGES, FIRST)  # fmt: skip
            _store(low, bias, buffers.index(WHICH), out, row + _WAVE, col, N)
        else:
            acc, turn = _by_pairs(values, weights, ready, free, zero, by_row, live, group_stride,
                                  by_block, part * SPAN, turn, GROUPS, SPAN, STAGES,
                                  FIRST)  # fmt: skip
            if SPLITS > 1:
                acc, is_last = sum_parts(acc, parts, arrivals, 2 * tile + WHICH, part, SPLITS)
        if is_last:
            _store(acc, bias, buffers.index(WHICH), out, row, col, N)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["M"])
def fp8_blocks_kernel(
    x, x_scales, group_stride, weight, scales, bias, out, parts, arrivals, M, N, K: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_OUT: gl.constexpr, SPLITS: gl.constexpr, STAGES: gl.constexpr,
    GROUP: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """Compute [M, N] outputs tile by tile; x, weight, out are described, zeros beyond edges."""
    release_successor(PDL)
    GROUPS: gl.constexpr = (K + _BLOCK - 1) // _BLOCK
    # Steps of a part: pairs of them.
    SPAN: gl.constexpr = (GROUPS + 2 * SPLITS - 1) // (2 * SPLITS) * 2
    values = gl.allocate_shared_memory(x.dtype, [STAGES, BLOCK_M, _BLOCK], x.layout)
    weights = gl.allocate_shared_memory(weight.dtype, [STAGES, _BLOCK, _BLOCK], weight.layout)
    buffers = gl.allocate_shared_memory(out.dtype, [2, _WAVE, _BLOCK], out.layout)
    ready, free = barriers(STAGES, 1, 2)
    items = gl.cdiv(M, BLOCK_M) * gl.cdiv(N, _BLOCK) * SPLITS
    wait_for_inputs(PDL)
    gl.warp_specialize(
        [
            (_multiply, (x_scales, group_stride, scales, bias, out, parts, arrivals, values,
                         weights, buffers, ready, free, items, M, N, GROUPS, SPAN, BLOCK_M,
                         BLOCK_OUT, SPLITS, STAGES, GROUP, 0)),
            (_multiply, (x_scales, group_stride, scales, bias, out, parts, arrivals, values,
                         weights, buffers, ready, free, items, M, N, GROUPS, SPAN, BLOCK_M,
                         BLOCK_OUT, SPLITS, STAGES, GROUP, 1)),
            (_fetch, (x, weight, values, weights, ready, free, items, M, N, SPAN, BLOCK_M, SPLITS,
                      STAGES, GROUP)),
        ],
        [4, 1],
        # Registers of those who multiply and of the one who fetches, of 65,536 for all.
        [232, 40],
    )  # fmt: skip


def multiply_blocks(
    x: QuantizedRows,
    values: Tensor,
    scales: Tensor,
    block_outputs: int,
    bias: Tensor | None,
    out: Tensor,
    tuning: BlocksTuning,
    arrivals: Tensor,
) -> None:
    """Write the product of rows and a weight in blocks to `out`; see `fp8_linear`.

    out: [M, N], bfloat16 or float16. arrivals: int32 zeros, two for each tile of 128 x 128 if
    programs share one; zeros again behind.
    """
    num_rows, width_out = out.shape
    tiles = ceil_div(num_rows, tuning.block_m) * ceil_div(width_out, GROUP)
    parts = None
    if tuning.splits > 1:
        require(tuning.block_m == 128, f"tiles of {tuning.block_m} rows are not split")
        require(2 * tiles <= arrivals.numel(), f"{tiles} tiles share columns")
        size = (tiles, tuning.splits, tuning.block_m, GROUP)
        parts = torch.empty(size, dtype=torch.float32, device=out.device)
    fp8_blocks_kernel[(min(num_processors(out.device), tiles * tuning.splits),)](
        described(x.in_tiles, tuning.block_m),
        x.scales,
        x.group_stride,
        described(values, GROUP),
        scales,
        bias,
        described(out, _WAVE.value),
        parts,
        arrivals,
        num_rows,
        width_out,
        K=values.shape[1],
        BLOCK_M=tuning.block_m,
        BLOCK_OUT=block_outputs,
        SPLITS=tuning.splits,
        STAGES=tuning.stages,
        GROUP=tuning.group,
        num_warps=4,
        # Launched early, a layer of 8,192 rows took 1.3 % longer.
        **(dependent_launch(out.device) if tuning.block_m == 128 else {"PDL": False}),
    )
