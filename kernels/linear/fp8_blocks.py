"""FP8 products of many rows over blocks of weights, for Hopper: each step's sums are scaled apart.

One warp fetches, two groups of four multiply tiles of their own and scale what they find: while one
scales, the matrix units work for the other. Triton's own pipeline lets all warps of a program do
the same at a time. It is written in Gluon, which has no interpreter: where that runs, and on other
GPUs, `fp8_matmul_kernel` is what multiplies.
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
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from tokenbus.kernels.launch import ceil_div, num_processors
from tokenbus.kernels.quantize import GROUP

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.quantize import QuantizedRows

# Triton 3.6 has other names for them than its later versions.
_load_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
_store_tile = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
# Columns of a step and outputs of a tile: a block of the weight.
_BLOCK = gl.constexpr(GROUP)
# Rows of one product of a group of warps.
_WAVE = gl.constexpr(64)


@dataclass(frozen=True, slots=True)
class BlocksTuning:
    """How many rows are laid out: rows of a tile, steps in flight, row tiles worked on together."""

    block_m: int
    stages: int
    group: int
    # Columns of a step.
    block_k: ClassVar[int] = GROUP


@gluon.jit
def _corner(tile, M, N, GROUP: gl.constexpr, BLOCK_M: gl.constexpr):
    """Return the first row and output of a tile."""
    tiles_m = gl.cdiv(M, BLOCK_M)
    tiles_n = gl.cdiv(N, _BLOCK)
    first = tile // (GROUP * tiles_n) * GROUP
    height = gl.minimum(tiles_m - first, GROUP)
    row = (first + tile % (GROUP * tiles_n) % height) * BLOCK_M
    return row, tile % (GROUP * tiles_n) // height * _BLOCK


@gluon.jit
def _fetch(x, weight, values, weights, ready, free, tiles, M, N, K: gl.constexpr,
           BLOCK_M: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr):  # fmt: skip
    """Fetch the steps of this program's tiles, one after the other, as room for them is free."""
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, col = _corner(tile, M, N, GROUP, BLOCK_M)
        for step in range((K + _BLOCK - 1) // _BLOCK):
            slot = turn % STAGES
            mbarrier.wait(free.index(slot), (turn // STAGES & 1) ^ 1)
            mbarrier.expect(ready.index(slot), (BLOCK_M + _BLOCK) * _BLOCK)
            at = step * _BLOCK
            _load_tile(x, [row, at], ready.index(slot), values.index(slot))
            _load_tile(weight, [col, at], ready.index(slot), weights.index(slot))
            turn += 1


@gluon.jit
def _wave(values, weights, zero, START: gl.constexpr):
    """Multiply 64 rows of a step, and wait for the product."""
    left = values.slice(START, _WAVE)
    product = warpgroup_mma(left, weights.permute((1, 0)), zero, use_acc=False, is_async=True)
    return warpgroup_mma_wait(0, deps=[product])


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
    _store_tile(out, [row, col], buffer)


@gluon.jit
def _multiply(x_scales, group_stride, scales, bias, out, values, weights, buffers, ready, free,
              tiles, M, N, K: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_OUT: gl.constexpr,
              STAGES: gl.constexpr, GROUP: gl.constexpr, WHICH: gl.constexpr):  # fmt: skip
    """Multiply half the rows of this program's tiles: WHICH half.

    Scales are asked for at the beginning of the step before, and waited for at its end, for a wait
    in the middle of a step waits for all that were asked for in it. Tall halves have no registers
    for the products of scales, and wait.
    """
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 32])
    GROUPS: gl.constexpr = (K + _BLOCK - 1) // _BLOCK
    HALF: gl.constexpr = BLOCK_M // 2
    TALL: gl.constexpr = HALF > _WAVE
    zero = gl.zeros([_WAVE, _BLOCK], gl.float32, layout=mma)
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, col = _corner(tile, M, N, GROUP, BLOCK_M)
        row += WHICH * HALF
        rows = row + gl.arange(0, _WAVE, layout=gl.SliceLayout(1, mma))
        by_block = scales + col // BLOCK_OUT * GROUPS
        by_out = gl.load(by_block)
        by_row = gl.load(x_scales + rows, mask=rows < M, other=0.0)
        acc = zero
        if TALL:
            by_low_row = gl.load(x_scales + rows + _WAVE, mask=rows + _WAVE < M, other=0.0)
            low = zero
        else:
            factor = by_row * by_out
        for step in range(GROUPS):
            slot = turn % STAGES
            following = gl.minimum(step + 1, GROUPS - 1)
            by_group = x_scales + following * group_stride + rows
            next_out = gl.load(by_block + following)
            next_row = gl.load(by_group, mask=rows < M, other=0.0)
            if TALL:
                next_low_row = gl.load(by_group + _WAVE, mask=rows + _WAVE < M, other=0.0)
            mbarrier.wait(ready.index(slot), turn // STAGES & 1)
            product = _wave(values.index(slot), weights.index(slot), zero, WHICH * HALF)
            if TALL:
                acc += product * (by_row * by_out)[:, None]
                product = _wave(values.index(slot), weights.index(slot), zero, WHICH * HALF + _WAVE)
            tl.debug_barrier()
            mbarrier.arrive(free.index(slot), count=1)
            if TALL:
                low += product * (by_low_row * by_out)[:, None]
                by_row, by_low_row, by_out = next_row, next_low_row, next_out
            else:
                acc += product * factor[:, None]
                factor = next_row * next_out
            turn += 1
        _store(acc, bias, buffers.index(WHICH), out, row, col, N)
        if TALL:
            _store(low, bias, buffers.index(WHICH), out, row + _WAVE, col, N)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["M"])
def fp8_blocks_kernel(
    x, x_scales, group_stride, weight, scales, bias, out, M, N, K: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_OUT: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    """Compute [M, N] outputs tile by tile; x, weight and out are tensor descriptors.

    What lies beyond an edge arrives as zeros and is not written.
    """
    values = gl.allocate_shared_memory(x.dtype, [STAGES, BLOCK_M, _BLOCK], x.layout)
    weights = gl.allocate_shared_memory(weight.dtype, [STAGES, _BLOCK, _BLOCK], weight.layout)
    buffers = gl.allocate_shared_memory(out.dtype, [2, _WAVE, _BLOCK], out.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(ready.index(slot), count=1)
        mbarrier.init(free.index(slot), count=2)
    tiles = gl.cdiv(M, BLOCK_M) * gl.cdiv(N, _BLOCK)
    gl.warp_specialize(
        [
            (_multiply, (x_scales, group_stride, scales, bias, out, values, weights, buffers, ready,
                         free, tiles, M, N, K, BLOCK_M, BLOCK_OUT, STAGES, GROUP, 0)),
            (_multiply, (x_scales, group_stride, scales, bias, out, values, weights, buffers, ready,
                         free, tiles, M, N, K, BLOCK_M, BLOCK_OUT, STAGES, GROUP, 1)),
            (_fetch, (x, weight, values, weights, ready, free, tiles, M, N, K, BLOCK_M, STAGES,
                      GROUP)),
        ],
        [4, 1],
        # Registers of those who multiply and of the one who fetches, of 65,536 for all.
        [232, 40],
    )  # fmt: skip


def takes_blocks(device: torch.device, out_dtype: torch.dtype, block_outputs: int) -> bool:
    """Say whether a device has what the kernel is made of, and tiles lie in blocks."""
    is_hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    lie_in_blocks = block_outputs > 0 and block_outputs % GROUP == 0
    return is_hopper and out_dtype.itemsize == 2 and lie_in_blocks


def _described(tensor: Tensor, height: int, dtype: gl.dtype) -> TensorDescriptor:
    """Describe tiles of 128 columns."""
    shape = [height, GROUP]
    layout = gl.NVMMASharedLayout.get_default_for(shape, dtype)
    return TensorDescriptor.from_tensor(tensor, shape, layout)


def multiply_blocks(
    x: QuantizedRows,
    values: Tensor,
    scales: Tensor,
    block_outputs: int,
    bias: Tensor | None,
    out: Tensor,
    tuning: BlocksTuning,
) -> None:
    """Write the product of rows and a weight in blocks to `out`; see `fp8_linear`.

    out: [M, N], bfloat16 or float16.
    """
    num_rows, width_out = out.shape
    tiles = ceil_div(num_rows, tuning.block_m) * ceil_div(width_out, GROUP)
    kept = gl.bfloat16 if out.dtype == torch.bfloat16 else gl.float16
    fp8_blocks_kernel[(min(num_processors(out.device), tiles),)](
        _described(x.in_tiles, tuning.block_m, gl.float8e4nv),
        x.scales,
        x.group_stride,
        _described(values, GROUP, gl.float8e4nv),
        scales,
        bias,
        _described(out, 64, kept),
        num_rows,
        width_out,
        K=values.shape[1],
        BLOCK_M=tuning.block_m,
        BLOCK_OUT=block_outputs,
        STAGES=tuning.stages,
        GROUP=tuning.group,
        num_warps=4,
    )
