"""FP8 products of few rows over blocks of weights, for Hopper: weights are asked for before rows.

A warp fetches steps of 64 outputs and 128 columns, four multiply and scale them. Weights depend on
no other kernel, so the first steps of them are on their way while the kernel before still rounds
the rows. It is written in Gluon, see `fp8_blocks`.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from tokenbus.kernels.activation import gate
from tokenbus.kernels.hopper import barriers, described, load_tile, sum_parts
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    next_power_of_2,
    release_successor,
    require,
    shared_tiles,
    wait_for_inputs,
)
from tokenbus.kernels.quantize import GROUP

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.linear.small_linear import Fusion
    from tokenbus.kernels.quantize import QuantizedRows

# Columns of a step: of a block. Outputs of a program.
_BLOCK = gl.constexpr(GROUP)
_OUTS = gl.constexpr(64)


@dataclass(frozen=True, slots=True)
class BlockRowsTuning:
    """How few rows are laid out: steps in flight, programs that share the columns of a tile."""

    stages: int
    splits: int = 1
    # Columns of a step.
    block_k: ClassVar[int] = GROUP


@gluon.jit
def _ask_weights(weight, weights, ready, col, N, at, slot, GATED: gl.constexpr):
    """Fetch the weights of a step, those of the gate and those it is multiplied with."""
    PARTS: gl.constexpr = 2 if GATED else 1
    mbarrier.expect(ready.index(slot), PARTS * _OUTS * _BLOCK)
    load_tile(weight, [col, at], ready.index(slot), weights.index(PARTS * slot))
    if GATED:
        load_tile(weight, [N + col, at], ready.index(slot), weights.index(PARTS * slot + 1))


@gluon.jit
def _fetch(x, weight, values, weights, ready, free, N, SPAN: gl.constexpr, STAGES: gl.constexpr,
           GATED: gl.constexpr, PDL: gl.constexpr):  # fmt: skip
    """Fetch the steps of this program, weights of the first ones before there are rows."""
    col = gl.program_id(0) * _OUTS
    begin = gl.program_id(1) * SPAN
    EARLY: gl.constexpr = min(STAGES, SPAN)
    for step in range(EARLY):
        _ask_weights(weight, weights, ready, col, N, (begin + step) * _BLOCK, step, GATED)
    wait_for_inputs(PDL)
    for step in range(SPAN):
        slot = step % STAGES
        at = (begin + step) * _BLOCK
        if step >= STAGES:
            mbarrier.wait(free.index(slot), (step // STAGES & 1) ^ 1)
            _ask_weights(weight, weights, ready, col, N, at, slot, GATED)
        mbarrier.expect(ready.index(slot), values.shape[1] * _BLOCK)
        load_tile(x, [0, at], ready.index(slot), values.index(slot))


@gluon.jit
def _keep_factors(kept, x_scales, group_stride, by_block, begin, GROUPS: gl.constexpr):
    """Leave what the products of all steps are multiplied by where every step finds it."""
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [8, 4], [4, 1], [1, 0])
    steps = gl.arange(0, kept.shape[0], layout=gl.SliceLayout(1, layout))
    rows = gl.arange(0, kept.shape[1], layout=gl.SliceLayout(0, layout))
    # Beyond the last block all numbers are zero.
    at = gl.minimum(begin + steps, GROUPS - 1)
    by_row = gl.load(x_scales + at[:, None] * group_stride + rows[None, :])
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, order=[1, 0])
    whole = kept._reinterpret(gl.float32, kept.shape, plain)  # noqa: SLF001 # no public name yet
    whole.store(by_row * gl.load(by_block + at)[:, None])


@gluon.jit
def _begin(left, right, product):
    """Begin to multiply a step; `product` gives its registers."""
    return warpgroup_mma(left, right.permute((1, 0)), product, use_acc=False, is_async=True)


@gluon.jit
def _end(product, acc, kept, step, PENDING: gl.constexpr):
    """Wait for all products but the PENDING latest, and add one to the sums, scaled."""
    product = warpgroup_mma_wait(PENDING, deps=[product])
    factor = kept.index(step).load(gl.SliceLayout(0, acc.type.layout))
    return product, acc + product * factor[None, :]


@gluon.jit
def _multiply(x_scales, group_stride, scales, bias, residual, out, parts, arrivals, values, weights,
              kept, kept_up, ready, free, M, N, GROUPS: gl.constexpr, SPAN: gl.constexpr,
              BLOCK_OUT: gl.constexpr, SPLITS: gl.constexpr, STAGES: gl.constexpr,
              ACT: gl.constexpr, PDL: gl.constexpr):  # fmt: skip
    """Multiply and scale the steps of this program, and write what comes of them."""
    ROWS: gl.constexpr = values.shape[1]
    GATED: gl.constexpr = ACT != "none"
    PARTS: gl.constexpr = 2 if GATED else 1
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 32])
    col = gl.program_id(0) * _OUTS
    begin = gl.program_id(1) * SPAN
    zero = gl.zeros([_OUTS, ROWS], gl.float32, layout=mma)
    wait_for_inputs(PDL)
    by_block = scales + col // BLOCK_OUT * GROUPS
    _keep_factors(kept, x_scales, group_stride, by_block, begin, GROUPS)
    if GATED:
        by_block = scales + (N + col) // BLOCK_OUT * GROUPS
        _keep_factors(kept_up, x_scales, group_stride, by_block, begin, GROUPS)
    acc = zero
    acc_up = zero
    even = zero
    odd = zero
    even_up = zero
    odd_up = zero
    for step in range(0, SPAN, 2):
        slot = step % STAGES
        other = (step + 1) % STAGES
        mbarrier.wait(ready.index(slot), step // STAGES & 1)
        even = _begin(weights.index(PARTS * slot), values.index(slot), even)
        if GATED:
            even_up = _begin(weights.index(PARTS * slot + 1), values.index(slot), even_up)
        mbarrier.wait(ready.index(other), (step + 1) // STAGES & 1)
        odd = _begin(weights.index(PARTS * other), values.index(other), odd)
        if GATED:
            odd_up = _begin(weights.index(PARTS * other + 1), values.index(other), odd_up)
        even, acc = _end(even, acc, kept, step, 2 * PARTS - 1)
        if GATED:
            even_up, acc_up = _end(even_up, acc_up, kept_up, step, 2)
        odd, acc = _end(odd, acc, kept, step + 1, PARTS - 1)
        if GATED:
            odd_up, acc_up = _end(odd_up, acc_up, kept_up, step + 1, 0)
        tl.debug_barrier()
        mbarrier.arrive(free.index(slot), count=1)
        mbarrier.arrive(free.index(other), count=1)
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(0, mma))
    outs = col + gl.arange(0, _OUTS, layout=gl.SliceLayout(1, mma))
    live = outs < N
    mask = live[:, None] & (rows < M)[None, :]
    place = rows[None, :].to(gl.int64) * N + outs[:, None]
    is_last = True
    if SPLITS > 1:
        tile = gl.program_id(0)
        acc, is_last = sum_parts(acc, parts, arrivals, tile, gl.program_id(1), SPLITS)
    if is_last:
        if bias is not None:
            acc += gl.load(bias + outs, mask=live, other=0.0).to(gl.float32)[:, None]
        if GATED:
            if bias is not None:
                acc_up += gl.load(bias + N + outs, mask=live, other=0.0).to(gl.float32)[:, None]
            acc = gate(acc, ACT) * acc_up
        if residual is not None:
            acc += gl.load(residual + place, mask=mask, other=0.0)
            gl.store(residual + place, acc, mask=mask)
        gl.store(out + place, acc.to(out.dtype.element_ty), mask=mask)


@gluon.jit(do_not_specialize=["M"])
def fp8_block_rows_kernel(
    x, x_scales, group_stride, weight, scales, bias, residual, out, parts, arrivals, M, N,
    K: gl.constexpr, BLOCK_OUT: gl.constexpr, SPLITS: gl.constexpr, STAGES: gl.constexpr,
    HELD: gl.constexpr, ACT: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """Compute [M, 64] outputs of [M, N]: bias, gate and residual behind; x, weight: descriptors.

    With splits every program has the columns of one part; a gate has no splits. HELD: a power of
    two that the steps of a part do not exceed.
    """
    release_successor(PDL)
    GROUPS: gl.constexpr = (K + _BLOCK - 1) // _BLOCK
    # Steps of a part: pairs of them.
    SPAN: gl.constexpr = (GROUPS + 2 * SPLITS - 1) // (2 * SPLITS) * 2
    GATED: gl.constexpr = ACT != "none"
    PARTS: gl.constexpr = 2 if GATED else 1
    ROWS: gl.constexpr = x.block_shape[0]
    values = gl.allocate_shared_memory(x.dtype, [STAGES, ROWS, _BLOCK], x.layout)
    weights = gl.allocate_shared_memory(
        weight.dtype, [PARTS * STAGES, _OUTS, _BLOCK], weight.layout
    )
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, order=[0])
    kept = gl.allocate_shared_memory(gl.float32, [HELD, ROWS], plain)
    kept_up = kept
    if GATED:
        kept_up = gl.allocate_shared_memory(gl.float32, [HELD, ROWS], plain)
    # What a slot waits for: weights and rows.
    ready, free = barriers(STAGES, 2, 1)
    gl.warp_specialize(
        [
            (_multiply, (x_scales, group_stride, scales, bias, residual, out, parts, arrivals,
                         values, weights, kept, kept_up, ready, free, M, N, GROUPS, SPAN, BLOCK_OUT,
                         SPLITS, STAGES, ACT, PDL)),
            (_fetch, (x, weight, values, weights, ready, free, N, SPAN, STAGES, GATED, PDL)),
        ],
        [1],
        [40],
    )  # fmt: skip


def multiply_block_rows(
    x: QuantizedRows,
    values: Tensor,
    scales: Tensor,
    block_outputs: int,
    fusion: Fusion,
    out: Tensor,
    tuning: BlockRowsTuning,
) -> None:
    """Write the product of few rows and a weight in blocks to `out`; see `fp8_linear`.

    out: [M, N].
    """
    num_rows, width_out = out.shape
    height = next_power_of_2(max(num_rows, 16))
    tiles = ceil_div(width_out, _OUTS.value)
    require(x.group_stride >= height, f"{x.group_stride} scales of a group, a tile has {height}")
    require(fusion.act is None or width_out % _OUTS.value == 0, f"gates of {width_out} outputs")
    span = ceil_div(values.shape[1], 2 * GROUP * tuning.splits) * 2
    require(tuning.splits == 1 or fusion.act is None, "gates are not split")
    parts, arrivals = shared_tiles(tiles, tuning.splits, _OUTS.value * height, out.device)
    fp8_block_rows_kernel[(tiles, tuning.splits)](
        described(x.in_tiles, height),
        x.scales,
        x.group_stride,
        described(values, _OUTS.value),
        scales,
        fusion.bias,
        fusion.residual,
        out,
        parts,
        arrivals,
        num_rows,
        width_out,
        K=values.shape[1],
        BLOCK_OUT=block_outputs,
        SPLITS=tuning.splits,
        STAGES=tuning.stages,
        HELD=next_power_of_2(span),
        ACT=fusion.act or "none",
        num_warps=4,
        # A thread's, on average over those who multiply and those who fetch: two programs fit.
        maxnreg=96 if height <= 32 else 128,
        **dependent_launch(out.device),
    )
