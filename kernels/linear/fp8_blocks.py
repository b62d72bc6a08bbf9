"""FP8 products of many rows over blocks of weights, for Hopper: each step's sums are scaled apart.

One warp fetches, two groups of four warps multiply half a tile each: while one group scales what it
found, the matrix units work for the other. Of tiles of 128 rows a group has two steps under way.
Tiles of 256 take less from the L2 cache: with thousands of rows the chip is short of power. A tile
of gates has 128 rows and 128 outputs, each a gate times what it gates, which are one group of
columns of the next product: a group of warps has all that the scale of a row needs, and what is
rounded is never written before. Gluon has no interpreter: under Triton's, and on other GPUs,
`fp8_matmul_kernel` multiplies.

The file is one noun, past three hundred lines: three ways to sum steps in one kernel.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

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
from tokenbus.kernels.hopper import (
    barriers,
    corner,
    described,
    is_hopper,
    load_tile,
    store_tile,
    sum_parts,
)
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    num_processors,
    release_successor,
    require,
    shared_tiles,
    wait_for_inputs,
)
from tokenbus.kernels.linear.fp8_shapes import check_scales
from tokenbus.kernels.quantize import GROUP, QuantizedRows, magnitude, row_number, scales_of_top

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.activation import ActivationKind

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


# How gates are laid out: as many bytes in flight as a tile of 256 rows has.
_GATES = BlocksTuning(128, 4, group=16)
# Rows that `fp8_block_rows` multiplies.
_FEW_ROWS = 64


@gluon.jit
def _fetch(x, weight, values, weights, ready, free, items, M, N, SPAN: gl.constexpr,
           BLOCK_M: gl.constexpr, SPLITS: gl.constexpr, STAGES: gl.constexpr,
           GROUP: gl.constexpr, IS_GATE: gl.constexpr):  # fmt: skip
    """Fetch the steps of this program's tiles, one after the other, as room for them is free."""
    turn = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        row, col = corner(item // SPLITS, M, N, GROUP, BLOCK_M, _BLOCK)
        begin = item % SPLITS * SPAN
        for step in range(begin, begin + SPAN):
            slot = turn % STAGES
            mbarrier.wait(free.index(slot), (turn // STAGES & 1) ^ 1)
            mbarrier.expect(ready.index(slot), (BLOCK_M + weights.shape[1]) * _BLOCK)
            load_tile(x, [row, step * _BLOCK], ready.index(slot), values.index(slot))
            firsts = weights.index(slot).slice(0, _BLOCK)
            load_tile(weight, [col, step * _BLOCK], ready.index(slot), firsts)
            if IS_GATE:
                ups = weights.index(slot).slice(_BLOCK, _BLOCK)
                load_tile(weight, [N + col, step * _BLOCK], ready.index(slot), ups)
            turn += 1


@gluon.jit
def _scales(by_row, live, group_stride, by_block, step, GROUPS: gl.constexpr):
    """Load the scales of rows and of a block; beyond the last block all numbers are zero."""
    at = gl.minimum(step, GROUPS - 1)
    return gl.load(by_row + at * group_stride, mask=live, other=0.0), gl.load(by_block + at)


@gluon.jit
def _begin(values, weights, slot, product, FIRST: gl.constexpr, OUT: gl.constexpr = 0):
    """Begin to multiply 64 rows of a step by 128 outputs; `product` gives its registers."""
    left = values.index(slot).slice(FIRST, _WAVE)
    right = weights.index(slot).slice(OUT, _BLOCK).permute((1, 0))
    return warpgroup_mma(left, right, product, use_acc=False, is_async=True)


@gluon.jit
def _end(product, acc, factor, free, slot, PENDING: gl.constexpr):
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
    a, b = _scales(by_row, live, group_stride, by_block, begin, GROUPS)
    c, d = _scales(by_row, live, group_stride, by_block, begin + 1, GROUPS)
    even_factor, odd_factor = a * b, c * d
    for step in range(begin + 2, begin + 2 + SPAN, 2):
        slot, other = turn % STAGES, (turn + 1) % STAGES
        a, b = _scales(by_row, live, group_stride, by_block, step, GROUPS)
        c, d = _scales(by_row, live, group_stride, by_block, step + 1, GROUPS)
        mbarrier.wait(ready.index(slot), turn // STAGES & 1)
        even = _begin(values, weights, slot, even, FIRST)
        mbarrier.wait(ready.index(other), (turn + 1) // STAGES & 1)
        odd = _begin(values, weights, other, odd, FIRST)
        even, acc = _end(even, acc, even_factor, free, slot, 1)
        odd, acc = _end(odd, acc, odd_factor, free, other, 0)
        even_factor, odd_factor = a * b, c * d
        turn += 2
    return acc, turn


@gluon.jit
def _by_waves(values, weights, ready, free, zero, x_scales, rows, live, low_live, group_stride,
              by_block, turn, GROUPS: gl.constexpr, SPAN: gl.constexpr, STAGES: gl.constexpr,
              FIRST: gl.constexpr):  # fmt: skip
    """Sum the products of 64 rows and of 64 below, a step after the other.

    There are no registers for a second product, nor for products of scales. Each begins from zeros,
    so that the compiler lets it begin in other registers while the one before is still scaled; an
    address for each row more, and it has none for that: `down` of 8,192 rows took 784 us in such a
    loop, 907 in the same registers, and 1,119 where the compiler kept some in memory.
    """
    acc, low = zero, zero
    block_scale = gl.load(by_block)
    row_scale = gl.load(x_scales + rows, mask=live, other=0.0)
    low_scale = gl.load(x_scales + rows + _WAVE, mask=low_live, other=0.0)
    for step in range(SPAN):
        slot = turn % STAGES
        following = gl.minimum(step + 1, GROUPS - 1)
        by_row = x_scales + following * group_stride + rows
        next_block = gl.load(by_block + following)
        next_row = gl.load(by_row, mask=live, other=0.0)
        next_low = gl.load(by_row + _WAVE, mask=low_live, other=0.0)
        mbarrier.wait(ready.index(slot), turn // STAGES & 1)
        product = _begin(values, weights, slot, zero, FIRST)
        product = warpgroup_mma_wait(0, deps=[product])
        acc += product * (row_scale * block_scale)[:, None]
        product = _begin(values, weights, slot, zero, FIRST + _WAVE)
        product, low = _end(product, low, low_scale * block_scale, free, slot, 0)
        row_scale, low_scale, block_scale = next_row, next_low, next_block
        turn += 1
    return acc, low, turn


@gluon.jit
def _by_gates(values, weights, ready, free, zero, by_row, live, group_stride, by_block, by_up, turn,
              GROUPS: gl.constexpr, SPAN: gl.constexpr, STAGES: gl.constexpr,
              FIRST: gl.constexpr):  # fmt: skip
    """Sum the products of 64 rows with gates and with what these gate, a step after the other."""
    product, acc, up = zero, zero, zero
    row_scale, block_scale = _scales(by_row, live, group_stride, by_block, 0, GROUPS)
    up_scale = gl.load(by_up)
    for step in range(1, SPAN + 1):
        slot = turn % STAGES
        next_row, next_block = _scales(by_row, live, group_stride, by_block, step, GROUPS)
        next_up = gl.load(by_up + gl.minimum(step, GROUPS - 1))
        mbarrier.wait(ready.index(slot), turn // STAGES & 1)
        product = _begin(values, weights, slot, product, FIRST)
        product = warpgroup_mma_wait(0, deps=[product])
        acc += product * (row_scale * block_scale)[:, None]
        product = _begin(values, weights, slot, product, FIRST, _BLOCK)
        product, up = _end(product, up, row_scale * up_scale, free, slot, 0)
        row_scale, block_scale, up_scale = next_row, next_block, next_up
        turn += 1
    return acc, up, turn


@gluon.jit
def _add_bias(acc, bias, col, N):
    """Add what each output has, if it has one."""
    if bias is not None:
        outs = col + gl.arange(0, _BLOCK, layout=gl.SliceLayout(0, acc.type.layout))
        acc += gl.load(bias + outs, mask=outs < N, other=0.0).to(gl.float32)[None, :]
    return acc


@gluon.jit
def _rounded(acc, up, out_scales, live, ACT: gl.constexpr):
    """Gate 64 rows of a group, leave their scales, and return what is rounded to e4m3."""
    acc = gate(acc, ACT) * up
    scale, inverse = scales_of_top(gl.max(magnitude(acc), axis=1))
    gl.store(out_scales, scale, mask=live)
    return row_number(acc * inverse[:, None])


@gluon.jit
def _store(value, buffer, out, row, col):
    """Write 64 rows from where the copy engine takes them."""
    tma.store_wait(0)
    tl.debug_barrier()
    buffer.store(value.to(buffer.dtype))
    fence_async_shared()
    tl.debug_barrier()
    store_tile(out, [row, col], buffer)


@gluon.jit
def _multiply(x_scales, group_stride, scales, bias, out, out_scales, out_stride, parts, arrivals,
              values, weights, buffers, ready, free, items, M, N, GROUPS: gl.constexpr,
              SPAN: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_OUT: gl.constexpr,
              SPLITS: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr, ACT: gl.constexpr,
              WHICH: gl.constexpr):  # fmt: skip
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
        if ACT != "none":
            by_up = scales + (N + col) // BLOCK_OUT * GROUPS
            acc, up, turn = _by_gates(values, weights, ready, free, zero, by_row, live,
                                      group_stride, by_block, by_up, turn, GROUPS, SPAN, STAGES,
                                      FIRST)  # fmt: skip
            up = _add_bias(up, bias, N + col, 2 * N)
        elif BLOCK_M > 2 * _WAVE:
            acc, low, turn = _by_waves(values, weights, ready, free, zero, x_scales, rows, live,
                                       rows + _WAVE < M, group_stride, by_block, turn, GROUPS, SPAN,
                                       STAGES, FIRST)  # fmt: skip
            low = _add_bias(low, bias, col, N)
            _store(low, buffers.index(WHICH), out, row + _WAVE, col)
        else:
            acc, turn = _by_pairs(values, weights, ready, free, zero, by_row, live, group_stride,
                                  by_block, part * SPAN, turn, GROUPS, SPAN, STAGES,
                                  FIRST)  # fmt: skip
            if SPLITS > 1:
                acc, is_last = sum_parts(acc, parts, arrivals, 2 * tile + WHICH, part, SPLITS)
        if is_last:
            acc = _add_bias(acc, bias, col, N)
            if ACT != "none":
                by_group = out_scales + col // _BLOCK * out_stride + rows
                numbers = _rounded(acc, up, by_group, live, ACT)
                _store(numbers, buffers.index(WHICH), out, row, col)
            else:
                _store(acc, buffers.index(WHICH), out, row, col)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["M"])
def fp8_blocks_kernel(
    x, x_scales, group_stride, weight, scales, bias, out, out_scales, out_stride, parts, arrivals,
    M, N, K: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_OUT: gl.constexpr, SPLITS: gl.constexpr,
    STAGES: gl.constexpr, GROUP: gl.constexpr, ACT: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """Compute [M, N] outputs tile by tile; x, weight, out are described, zeros beyond edges.

    With an activation, weight has [2 N, K], gates first, and out is rounded to `out_scales`.
    """
    release_successor(PDL)
    GROUPS: gl.constexpr = (K + _BLOCK - 1) // _BLOCK
    # Steps of a part: pairs of them.
    SPAN: gl.constexpr = (GROUPS + 2 * SPLITS - 1) // (2 * SPLITS) * 2
    values = gl.allocate_shared_memory(x.dtype, [STAGES, BLOCK_M, _BLOCK], x.layout)
    IS_GATE: gl.constexpr = ACT != "none"
    OUTS: gl.constexpr = 2 * _BLOCK if IS_GATE else _BLOCK
    weights = gl.allocate_shared_memory(weight.dtype, [STAGES, OUTS, _BLOCK], weight.layout)
    buffers = gl.allocate_shared_memory(out.dtype, [2, _WAVE, _BLOCK], out.layout)
    ready, free = barriers(STAGES, 1, 2)
    items = gl.cdiv(M, BLOCK_M) * gl.cdiv(N, _BLOCK) * SPLITS
    wait_for_inputs(PDL)
    gl.warp_specialize(
        [
            (_multiply, (x_scales, group_stride, scales, bias, out, out_scales, out_stride, parts,
                         arrivals, values, weights, buffers, ready, free, items, M, N, GROUPS, SPAN,
                         BLOCK_M, BLOCK_OUT, SPLITS, STAGES, GROUP, ACT, 0)),
            (_multiply, (x_scales, group_stride, scales, bias, out, out_scales, out_stride, parts,
                         arrivals, values, weights, buffers, ready, free, items, M, N, GROUPS, SPAN,
                         BLOCK_M, BLOCK_OUT, SPLITS, STAGES, GROUP, ACT, 1)),
            (_fetch, (x, weight, values, weights, ready, free, items, M, N, SPAN, BLOCK_M, SPLITS,
                      STAGES, GROUP, IS_GATE)),
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
) -> None:
    """Write the product of rows and a weight in blocks to `out`; see `fp8_linear`.

    out: [M, N], bfloat16 or float16.
    """
    is_split = tuning.splits > 1
    require(not is_split or tuning.block_m == 128, f"tiles of {tuning.block_m} rows are not split")
    _launch(x, values, scales, block_outputs, bias, out, tuning)


def gate_blocks(
    x: QuantizedRows,
    values: Tensor,
    scales: Tensor,
    act: ActivationKind,
    *,
    block_outputs: int,
    bias: Tensor | None = None,
    tuning: BlocksTuning = _GATES,
) -> QuantizedRows:
    """Multiply rows by gates and by what these gate, and round what comes of it.

    Args:
        x: [M, K], a scale per row and 128 columns. values: [2 N, K] e4m3, gates first, and scales
            of its blocks, as `takes_gates` asks; see `fp8_linear`. bias: [2 N].
    Returns: [M, N], a scale per row and 128 columns; rounded once, from fp32.
    Raises: KernelInputError on other shapes. Twin: reference.fused_linear of what both stand for,
        each group of its columns rounded as a row.
    """
    num_rows, width_out = x.values.shape[0], values.shape[0] // 2
    require(block_outputs % GROUP == 0 == width_out % GROUP, "tiles of gates do not lie in blocks")
    require(x.values.shape[1] == values.shape[1], "rows and weight differ in width")
    require(tuning.block_m == 128 and tuning.splits == 1, "gates have tiles of 128 rows, unsplit")
    check_scales(x, values, scales, block_outputs, tuning.block_k)
    out = QuantizedRows.empty(num_rows, width_out, values.device, width_out // GROUP)
    if num_rows:
        _launch(x, values, scales, block_outputs, bias, out.values, tuning, act=act, by_group=out)
    return out


def takes_gates(x: QuantizedRows, values: Tensor, block_outputs: int) -> bool:
    """Say whether rows are many, tiles of gates lie in blocks, and a device has `gate_blocks`."""
    in_blocks = block_outputs > 0 and block_outputs % GROUP == values.shape[0] % (2 * GROUP) == 0
    return in_blocks and x.values.shape[0] > _FEW_ROWS and is_hopper(values.device)


def _launch(
    x: QuantizedRows,
    values: Tensor,
    scales: Tensor,
    block_outputs: int,
    bias: Tensor | None,
    out: Tensor,
    tuning: BlocksTuning,
    *,
    act: ActivationKind | None = None,
    by_group: QuantizedRows | None = None,
) -> None:
    """Write to `out` what tiles of its size hold, rounded to the scales of `by_group` if given."""
    num_rows, width_out = out.shape
    tiles = ceil_div(num_rows, tuning.block_m) * ceil_div(width_out, GROUP)
    # Each group of warps has half a tile.
    parts, arrivals = shared_tiles(2 * tiles, tuning.splits, _WAVE.value * GROUP, out.device)
    fp8_blocks_kernel[(min(num_processors(out.device), tiles * tuning.splits),)](
        described(x.in_tiles, tuning.block_m),
        x.scales,
        x.group_stride,
        described(values, GROUP),
        scales,
        bias,
        described(out, _WAVE.value),
        None if by_group is None else by_group.scales,
        0 if by_group is None else by_group.group_stride,
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
        ACT=act or "none",
        num_warps=4,
        # Launched early, a layer of 8,192 rows took 1.3 % longer.
        **(dependent_launch(out.device) if tuning.block_m == 128 else {"PDL": False}),
    )
