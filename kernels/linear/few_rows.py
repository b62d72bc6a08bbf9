"""Products of two to sixteen rows for Hopper: weights go from memory into matrix instructions.

What a thread loads of a weight, sixteen bytes of each of its rows, is its part of the next matrix
instructions; nothing passes through shared memory, so as many bytes are on their way as registers
hold. Each warp has columns of its own, and their sums are added up at the end. It is written in
Gluon, which has no interpreter: where that runs, and on other GPUs, `small_matmul` multiplies.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from tokenbus.kernels.activation import gate
from tokenbus.kernels.hopper import is_hopper
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    next_power_of_2,
    release_successor,
    wait_for_inputs,
)

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.linear.small_linear import Fusion

# Outputs of a program: the height of a matrix instruction.
_OUTS = gl.constexpr(16)


@dataclass(frozen=True, slots=True)
class FewRowsLayout:
    """Columns of the weights are dealt out to `num_warps`, `part` of them to each at a time.

    ahead: pieces of the weights on their way; part: 64 or a multiple.
    """

    num_warps: int = 4
    part: int = 64
    ahead: int = 2

    def divides(self, width_in: int) -> bool:
        """Tell whether rows of so many columns are whole turns of all warps."""
        return width_in % (self.num_warps * self.part * self.ahead) == 0


@gluon.jit
def _cube(first, second, third):
    """Add up offsets along three axes, [A], [B] and [C] -> [A, B, C]."""
    one = gl.expand_dims(gl.expand_dims(first, 1), 2)
    two = gl.expand_dims(gl.expand_dims(second, 0), 2)
    return one + two + gl.expand_dims(gl.expand_dims(third, 0), 1)


@gluon.jit
def _load_weights(place, step, between, ACT: gl.constexpr):
    """Ask for a piece of the weights, and for that of the outputs that they gate."""
    weights = gl.load(place + step, eviction_policy="evict_first")
    others = weights
    if ACT != "none":
        others = gl.load(place + between + step, eviction_policy="evict_first")
    return weights, others


@gluon.jit
def _add_products(weights, value, acc, acc_up, ACT: gl.constexpr):
    acc = mma_v2(weights[0], value, acc)
    if ACT != "none":
        acc_up = mma_v2(weights[1], value, acc_up)
    return acc, acc_up


@gluon.jit
def _load_shift(bias, outs, N, HAS_BIAS: gl.constexpr):
    shift = gl.zeros_like(outs).to(gl.float32)
    if HAS_BIAS:
        shift = gl.load(bias + outs, mask=outs < N, other=0.0).to(gl.float32)
    return gl.expand_dims(shift, 1)


@gluon.jit(do_not_specialize=["M"])
def few_rows_kernel(
    x, weight, bias, residual, out, M, N, K: gl.constexpr, ROWS: gl.constexpr,
    WARPS: gl.constexpr, PART: gl.constexpr, AHEAD: gl.constexpr, HAS_BIAS: gl.constexpr,
    HAS_RESIDUAL: gl.constexpr, ACT: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """Compute [M, 16] outputs: bias, gate and residual behind."""
    release_successor(PDL)
    mma: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, 1, 1], [1, 16, 8])
    left: gl.constexpr = gl.DotOperandLayout(0, mma, 8)
    right: gl.constexpr = gl.DotOperandLayout(1, mma, 8)
    WIDTH: gl.constexpr = WARPS * PART
    first = gl.program_id(0) * _OUTS
    warps = gl.arange(0, WARPS, layout=gl.SliceLayout(1, gl.SliceLayout(2, left)))
    outs = first + gl.arange(0, _OUTS, layout=gl.SliceLayout(0, gl.SliceLayout(2, left)))
    cols = gl.arange(0, PART, layout=gl.SliceLayout(0, gl.SliceLayout(1, left)))
    # Outputs that are not there are computed like the last one.
    place = weight + _cube(warps * PART, gl.minimum(outs, N - 1).to(gl.int64) * K, cols)
    between = N.to(gl.int64) * K
    coming = ()
    for turn in gl.static_range(AHEAD):
        coming += (_load_weights(place, turn * WIDTH, between, ACT),)
    warps = gl.arange(0, WARPS, layout=gl.SliceLayout(1, gl.SliceLayout(2, right)))
    cols = gl.arange(0, PART, layout=gl.SliceLayout(0, gl.SliceLayout(2, right)))
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(0, gl.SliceLayout(1, right)))
    source = x + _cube(warps * PART, cols, rows * K)
    some = gl.expand_dims(gl.expand_dims(rows < M, 0), 1)
    acc = gl.zeros([WARPS, _OUTS, ROWS], gl.float32, layout=mma)
    acc_up = gl.zeros([WARPS, _OUTS, ROWS], gl.float32, layout=mma)
    wait_for_inputs(PDL)
    for start in range(0, K - AHEAD * WIDTH, AHEAD * WIDTH):
        following = ()
        for turn in gl.static_range(AHEAD):
            value = gl.load(source + (start + turn * WIDTH), mask=some, other=0.0)
            acc, acc_up = _add_products(coming[turn], value, acc, acc_up, ACT)
            step = start + (turn + AHEAD) * WIDTH
            following += (_load_weights(place, step, between, ACT),)
        coming = following
    for turn in gl.static_range(AHEAD):
        value = gl.load(source + (K - (AHEAD - turn) * WIDTH), mask=some, other=0.0)
        acc, acc_up = _add_products(coming[turn], value, acc, acc_up, ACT)
    flat: gl.constexpr = gl.SliceLayout(0, mma)
    outs = first + gl.arange(0, _OUTS, layout=gl.SliceLayout(1, flat))
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(0, flat))
    y = gl.sum(acc, axis=0) + _load_shift(bias, outs, N, HAS_BIAS)
    if ACT != "none":
        y = gate(y, ACT) * (gl.sum(acc_up, axis=0) + _load_shift(bias + N, outs, N, HAS_BIAS))
    mask = (outs < N)[:, None] & (rows < M)[None, :]
    at = rows[None, :] * N + outs[:, None]
    if HAS_RESIDUAL:
        y += gl.load(residual + at, mask=mask, other=0.0)
        gl.store(residual + at, y, mask=mask)
    gl.store(out + at, y.to(out.dtype.element_ty), mask=mask)


def takes_few_rows(x: Tensor, fusion: Fusion) -> FewRowsLayout | None:
    """Return the layout in which rows x [M, K] are multiplied, None where others are faster."""
    if x.shape[0] == 1 or fusion.among is not None or x.element_size() != 2:
        return None
    layout = FewRowsLayout()
    return layout if is_hopper(x.device) and layout.divides(x.shape[1]) else None


def few_rows(
    x: Tensor, weight: Tensor, fusion: Fusion, layout: FewRowsLayout, out: Tensor
) -> Tensor:
    """Multiply rows by a weight, with what `fusion` has behind the product; no norm.

    Args:
        x: [M, K] in 16 bits, contiguous, 2 <= M <= 32; the layout divides K.
        weight: [N, K], or [2 N, K] with an activation. out: [M, N] to write to.
    Twin: reference.fused_linear.
    """
    num_rows, width_in = x.shape
    width_out = out.shape[1]
    few_rows_kernel[(ceil_div(width_out, _OUTS.value),)](
        x,
        weight,
        weight if fusion.bias is None else fusion.bias,
        fusion.residual,
        out,
        num_rows,
        width_out,
        K=width_in,
        ROWS=max(8, next_power_of_2(num_rows)),
        WARPS=layout.num_warps,
        PART=layout.part,
        AHEAD=layout.ahead,
        HAS_BIAS=fusion.bias is not None,
        HAS_RESIDUAL=fusion.residual is not None,
        ACT=fusion.act or "none",
        num_warps=layout.num_warps,
        **dependent_launch(x.device),
    )
    return out
