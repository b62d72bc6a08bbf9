"""Gates of many rows over FP8 blocks, for Hopper, rounded for the next product in the same launch.

A tile has 128 rows and 128 outputs, each a gate times what it gates, which are one group of columns
of the next product: a group of four warps has all that the scale of a row needs. So the sums
are never written, which takes as long as a twentieth of the product. See `fp8_blocks`.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma_wait,
)

from tokenbus.kernels.activation import gate
from tokenbus.kernels.hopper import barriers, corner, described, is_hopper, load_tile, store_tile
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    num_processors,
    release_successor,
    require,
    wait_for_inputs,
)
from tokenbus.kernels.linear.fp8_blocks import begin_product, end_product, step_scales
from tokenbus.kernels.linear.fp8_shapes import check_scales
from tokenbus.kernels.quantize import GROUP, QuantizedRows, magnitude, row_number, scales_of_top

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.activation import ActivationKind

# Columns of a step, and outputs of a tile: a block of the weight, a group of the next product.
_BLOCK = gl.constexpr(GROUP)
# Rows of a tile, and of one product of a group of warps.
_TILE = gl.constexpr(128)
_WAVE = gl.constexpr(64)
# Steps in flight, and tiles of rows that are worked on together.
_STAGES, _TOGETHER = 4, 8
# Rows that the kernel of few rows multiplies.
_FEW_ROWS = 64


@gluon.jit
def _fetch(x, weight, values, gates, ups, ready, free, tiles, M, N, GROUPS: gl.constexpr,
           STAGES: gl.constexpr, TOGETHER: gl.constexpr):  # fmt: skip
    """Fetch the steps of this program's tiles, one after the other, as room for them is free."""
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, col = corner(tile, M, N, TOGETHER, _TILE, _BLOCK)
        for step in range(GROUPS):
            slot = turn % STAGES
            mbarrier.wait(free.index(slot), (turn // STAGES & 1) ^ 1)
            mbarrier.expect(ready.index(slot), (_TILE + 2 * _BLOCK) * _BLOCK)
            at = step * _BLOCK
            load_tile(x, [row, at], ready.index(slot), values.index(slot))
            load_tile(weight, [col, at], ready.index(slot), gates.index(slot))
            load_tile(weight, [N + col, at], ready.index(slot), ups.index(slot))
            turn += 1


@gluon.jit
def _multiply(x_scales, group_stride, scales, bias, out, out_scales, out_stride, values, gates, ups,
              buffers, ready, free, tiles, M, N, GROUPS: gl.constexpr, BLOCK_OUT: gl.constexpr,
              STAGES: gl.constexpr, TOGETHER: gl.constexpr, ACT: gl.constexpr,
              WHICH: gl.constexpr):  # fmt: skip
    """Multiply half the rows of this program's tiles, WHICH half, and round what is gated."""
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 32])
    FIRST: gl.constexpr = WHICH * _WAVE
    zero = gl.zeros([_WAVE, _BLOCK], gl.float32, layout=mma)
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, col = corner(tile, M, N, TOGETHER, _TILE, _BLOCK)
        row += FIRST
        rows = row + gl.arange(0, _WAVE, layout=gl.SliceLayout(1, mma))
        live, by_row = rows < M, x_scales + rows
        by_gate = scales + col // BLOCK_OUT * GROUPS
        by_up = scales + (N + col) // BLOCK_OUT * GROUPS
        product, acc, up = zero, zero, zero
        row_scale, gate_scale = step_scales(by_row, live, group_stride, by_gate, 0, GROUPS)
        up_scale = gl.load(by_up)
        for step in range(1, GROUPS + 1):
            slot = turn % STAGES
            next_row, next_gate = step_scales(by_row, live, group_stride, by_gate, step, GROUPS)
            next_up = gl.load(by_up + gl.minimum(step, GROUPS - 1))
            mbarrier.wait(ready.index(slot), turn // STAGES & 1)
            product = begin_product(values, gates, slot, product, FIRST)
            product = warpgroup_mma_wait(0, deps=[product])
            acc += product * (row_scale * gate_scale)[:, None]
            product = begin_product(values, ups, slot, product, FIRST)
            product, up = end_product(product, up, row_scale * up_scale, free, slot, 0)
            row_scale, gate_scale, up_scale = next_row, next_gate, next_up
            turn += 1
        if bias is not None:
            outs = bias + col + gl.arange(0, _BLOCK, layout=gl.SliceLayout(0, mma))
            acc += gl.load(outs).to(gl.float32)[None, :]
            up += gl.load(outs + N).to(gl.float32)[None, :]
        acc = gate(acc, ACT) * up
        scale, inverse = scales_of_top(gl.max(magnitude(acc), axis=1))
        gl.store(out_scales + col // _BLOCK * out_stride + rows, scale, mask=live)
        tma.store_wait(0)
        tl.debug_barrier()
        buffers.index(WHICH).store(row_number(acc * inverse[:, None]))
        fence_async_shared()
        tl.debug_barrier()
        store_tile(out, [row, col], buffers.index(WHICH))
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["M"])
def fp8_gated_blocks_kernel(
    x, x_scales, group_stride, weight, scales, bias, out, out_scales, out_stride, M, N,
    K: gl.constexpr, BLOCK_OUT: gl.constexpr, STAGES: gl.constexpr, TOGETHER: gl.constexpr,
    ACT: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """Compute [M, N] rounded outputs tile by tile; x, weight, out are described."""
    release_successor(PDL)
    GROUPS: gl.constexpr = (K + _BLOCK - 1) // _BLOCK
    values = gl.allocate_shared_memory(x.dtype, [STAGES, _TILE, _BLOCK], x.layout)
    gates = gl.allocate_shared_memory(weight.dtype, [STAGES, _BLOCK, _BLOCK], weight.layout)
    ups = gl.allocate_shared_memory(weight.dtype, [STAGES, _BLOCK, _BLOCK], weight.layout)
    buffers = gl.allocate_shared_memory(out.dtype, [2, _WAVE, _BLOCK], out.layout)
    ready, free = barriers(STAGES, 1, 2)
    tiles = gl.cdiv(M, _TILE) * gl.cdiv(N, _BLOCK)
    wait_for_inputs(PDL)
    gl.warp_specialize(
        [
            (_multiply, (x_scales, group_stride, scales, bias, out, out_scales, out_stride, values,
                         gates, ups, buffers, ready, free, tiles, M, N, GROUPS, BLOCK_OUT, STAGES,
                         TOGETHER, ACT, 0)),
            (_multiply, (x_scales, group_stride, scales, bias, out, out_scales, out_stride, values,
                         gates, ups, buffers, ready, free, tiles, M, N, GROUPS, BLOCK_OUT, STAGES,
                         TOGETHER, ACT, 1)),
            (_fetch, (x, weight, values, gates, ups, ready, free, tiles, M, N, GROUPS, STAGES,
                      TOGETHER)),
        ],
        [4, 1],
        # Registers of those who multiply and of the one who fetches, of 65,536 for all.
        [232, 40],
    )  # fmt: skip


def takes_gated_blocks(x: QuantizedRows, values: Tensor, block_outputs: int) -> bool:
    """Say whether rows are many, tiles of gates lie in blocks, and a device has such kernels."""
    in_blocks = block_outputs > 0 and block_outputs % GROUP == values.shape[0] % (2 * GROUP) == 0
    return in_blocks and x.values.shape[0] > _FEW_ROWS and is_hopper(values.device)


def fp8_gated_blocks(
    x: QuantizedRows,
    values: Tensor,
    scales: Tensor,
    act: ActivationKind,
    *,
    block_outputs: int,
    bias: Tensor | None = None,
) -> QuantizedRows:
    """Multiply rows by gates and what these gate, and round what comes of it.

    Args:
        x: [M, K], a scale per row and 128 columns. values: [2 N, K] e4m3, gates first, and scales
            of its blocks, as `takes_gated_blocks` asks; see `fp8_linear`. bias: [2 N].
    Returns: [M, N], a scale per row and 128 columns; rounded once, from fp32.
    Raises: KernelInputError on other shapes. Twin: reference.fused_linear of what both stand for,
        each group of its columns rounded as a row.
    """
    num_rows, width_out = x.values.shape[0], values.shape[0] // 2
    require(block_outputs % GROUP == 0 == width_out % GROUP, "tiles of gates do not lie in blocks")
    require(x.values.shape[1] == values.shape[1], "rows and weight differ in width")
    check_scales(x, values, scales, block_outputs, None)
    out = QuantizedRows.empty(num_rows, width_out, values.device, width_out // GROUP)
    if num_rows == 0:
        return out
    tiles = ceil_div(num_rows, _TILE.value) * (width_out // GROUP)
    fp8_gated_blocks_kernel[(min(num_processors(values.device), tiles),)](
        described(x.in_tiles, _TILE.value),
        x.scales,
        x.group_stride,
        described(values, GROUP),
        scales,
        bias,
        described(out.values, _WAVE.value),
        out.scales,
        out.group_stride,
        num_rows,
        width_out,
        K=values.shape[1],
        BLOCK_OUT=block_outputs,
        STAGES=_STAGES,
        TOGETHER=_TOGETHER,
        ACT=act,
        num_warps=4,
        **dependent_launch(values.device),
    )
    return out
