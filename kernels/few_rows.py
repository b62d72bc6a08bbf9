"""Products of two to sixteen rows for Hopper: weights go from memory into matrix instructions.

What a thread loads of a weight, sixteen bytes of each of its rows, is its part of the next matrix
instructions; nothing passes through shared memory, so as many bytes are on their way as registers
hold. Each warp has columns of its own, and their sums are added up at the end. It is written in
Gluon, which has no interpreter: where that runs, and on other GPUs, `small_matmul` multiplies.
"""

# Gluon unrolls the loops over tuples, mypy cannot.
# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
# mypy: disable-error-code="assignment,misc,var-annotated"
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

    from tokenbus.kernels.activation import ActivationKind

# Outputs of a tile: the height of a matrix instruction.
_OUTS = gl.constexpr(16)


@dataclass(frozen=True, slots=True)
class FewRowsLayout:
    """How a product is laid out on the chip.

    tiles: of 16 outputs each, that a program has. Columns of the weights are dealt out to
    `num_warps`, `part` of them, 64 or a multiple, to each at a time. ahead: such pieces of each
    tile that are on their way.
    """

    tiles: int = 2
    num_warps: int = 8
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
def _load_pieces(weight, first, within, start, N, K: gl.constexpr, TILES: gl.constexpr,
                 GATED: gl.constexpr):  # fmt: skip
    """Ask for some columns of all tiles, and of the outputs that they gate."""
    pieces = ()
    for tile in gl.static_range(TILES):
        # A tile behind the last is computed like that one.
        out = gl.minimum(first + tile * _OUTS, N - _OUTS).to(gl.int64)
        place = weight + out * K + start
        pieces += (gl.load(place + within, eviction_policy="evict_first"),)
        if GATED:
            pieces += (gl.load(place + N.to(gl.int64) * K + within, eviction_policy="evict_first"),)
    return pieces


@gluon.jit
def _load_rows(x, norm_weight, source, cols, some, start, squares, HAS_NORM: gl.constexpr,
               ADD_ONE: gl.constexpr):  # fmt: skip
    """Load some columns of x, scaled for the norm, and add up their squares."""
    value = gl.load(x + start + source, mask=some, other=0.0)
    if HAS_NORM:
        wide = value.to(gl.float32)
        squares += wide * wide
        scale = gl.expand_dims(gl.load(norm_weight + start + cols), 2).to(gl.float32)
        if ADD_ONE:
            scale += 1.0
        value = (wide * scale).to(value.dtype)
    return value, squares


@gluon.jit
def _add_products(pieces, value, sums):
    added = ()
    for place in gl.static_range(len(sums)):
        added += (mma_v2(pieces[place], value, sums[place]),)
    return added


@gluon.jit
def _finished(acc, norm, bias, outs, end, HAS_BIAS: gl.constexpr):
    """Return the sums of a tile, [16, ROWS], with the norm's factor and the bias."""
    y = gl.sum(acc, axis=0) * norm
    if HAS_BIAS:
        shift = gl.load(bias + outs, mask=outs < end, other=0.0).to(gl.float32)
        y += gl.expand_dims(shift, 1)
    return y


@gluon.jit(do_not_specialize=["M"])
def few_rows_kernel(
    x, weight, bias, residual, norm_weight, out, M, N, eps, K: gl.constexpr, ROWS: gl.constexpr,
    TILES: gl.constexpr, WARPS: gl.constexpr, PART: gl.constexpr, AHEAD: gl.constexpr,
    HAS_BIAS: gl.constexpr, HAS_RESIDUAL: gl.constexpr, HAS_NORM: gl.constexpr,
    ADD_ONE: gl.constexpr, ACT: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """Compute [M, 16 TILES] outputs: norm in front, bias, gate and residual behind."""
    release_successor(PDL)
    mma: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, 1, 1], [1, 16, 8])
    left: gl.constexpr = gl.DotOperandLayout(0, mma, 8)
    right: gl.constexpr = gl.DotOperandLayout(1, mma, 8)
    flat: gl.constexpr = gl.SliceLayout(0, mma)
    GATED: gl.constexpr = ACT != "none"
    WIDTH: gl.constexpr = WARPS * PART
    first = gl.program_id(0) * (TILES * _OUTS)
    warps = gl.arange(0, WARPS, layout=gl.SliceLayout(1, gl.SliceLayout(2, left)))
    outs = gl.arange(0, _OUTS, layout=gl.SliceLayout(0, gl.SliceLayout(2, left)))
    cols = gl.arange(0, PART, layout=gl.SliceLayout(0, gl.SliceLayout(1, left)))
    within = _cube(warps * PART, outs * K, cols)
    coming = ()
    for turn in gl.static_range(AHEAD):
        coming += (_load_pieces(weight, first, within, turn * WIDTH, N, K, TILES, GATED),)
    warps = gl.arange(0, WARPS, layout=gl.SliceLayout(1, gl.SliceLayout(2, right)))
    cols = gl.arange(0, PART, layout=gl.SliceLayout(0, gl.SliceLayout(2, right)))
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(0, gl.SliceLayout(1, right)))
    source = _cube(warps * PART, cols, rows * K)
    some = gl.expand_dims(gl.expand_dims(rows < M, 0), 1)
    cols = gl.expand_dims(warps * PART, 1) + gl.expand_dims(cols, 0)
    squares = gl.zeros([WARPS, PART, ROWS], gl.float32, layout=right)
    sums = ()
    for _ in gl.static_range(2 * TILES if GATED else TILES):
        sums += (gl.zeros([WARPS, _OUTS, ROWS], gl.float32, layout=mma),)
    wait_for_inputs(PDL)
    for start in range(0, K - AHEAD * WIDTH, AHEAD * WIDTH):
        following = ()
        for turn in gl.static_range(AHEAD):
            value, squares = _load_rows(x, norm_weight, source, cols, some, start + turn * WIDTH,
                                        squares, HAS_NORM, ADD_ONE)  # fmt: skip
            sums = _add_products(coming[turn], value, sums)
            following += (_load_pieces(weight, first, within, start + (turn + AHEAD) * WIDTH, N, K,
                                       TILES, GATED),)  # fmt: skip
        coming = following
    for turn in gl.static_range(AHEAD):
        value, squares = _load_rows(x, norm_weight, source, cols, some, K - (AHEAD - turn) * WIDTH,
                                    squares, HAS_NORM, ADD_ONE)  # fmt: skip
        sums = _add_products(coming[turn], value, sums)
    norm = 1.0
    if HAS_NORM:
        total = gl.sum(gl.sum(squares, axis=1), axis=0)
        norm = gl.convert_layout(gl.rsqrt(total / K + eps), gl.SliceLayout(0, flat))
        norm = gl.expand_dims(norm, 0)
    rows = gl.expand_dims(gl.arange(0, ROWS, layout=gl.SliceLayout(0, flat)), 0)
    for tile in gl.static_range(TILES):
        outs = first + tile * _OUTS + gl.arange(0, _OUTS, layout=gl.SliceLayout(1, flat))
        if GATED:
            y = gate(_finished(sums[2 * tile], norm, bias, outs, N, HAS_BIAS), ACT)
            y *= _finished(sums[2 * tile + 1], norm, bias + N, outs, N, HAS_BIAS)
        else:
            y = _finished(sums[tile], norm, bias, outs, N, HAS_BIAS)
        outs = gl.expand_dims(outs, 1)
        mask = (outs < N) & (rows < M)
        at = rows * N + outs
        if HAS_RESIDUAL:
            y += gl.load(residual + at, mask=mask, other=0.0)
            gl.store(residual + at, y, mask=mask)
        gl.store(out + at, y.to(out.dtype.element_ty), mask=mask)


def takes_few_rows(x: Tensor, width_out: int) -> FewRowsLayout | None:
    """Return the layout for rows x [M, K] and N outputs, None where other kernels are faster."""
    if x.shape[0] == 1 or x.element_size() != 2 or width_out % _OUTS.value:
        return None
    layout = FewRowsLayout()
    return layout if is_hopper(x.device) and layout.divides(x.shape[1]) else None


def few_rows(
    x: Tensor,
    weight: Tensor,
    layout: FewRowsLayout,
    out: Tensor,
    *,
    norm_weight: Tensor | None = None,
    norm_add_one: bool = False,
    eps: float = 1e-6,
    bias: Tensor | None = None,
    act: ActivationKind | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Multiply rows by a weight, with what `Fusion` says of a product's surroundings.

    Args:
        x: [M, K] in 16 bits, contiguous, 2 <= M <= 32; the layout divides K.
        weight: [N, K], or [2 N, K] with an activation; 16 divides N. out: [M, N] to write to.
    Twin: reference.fused_linear.
    """
    num_rows, width_in = x.shape
    width_out = out.shape[1]
    few_rows_kernel[(ceil_div(width_out, _OUTS.value * layout.tiles),)](
        x,
        weight,
        # Its halves are found by an offset.
        weight if bias is None else bias,
        residual,
        norm_weight,
        out,
        num_rows,
        width_out,
        eps,
        K=width_in,
        ROWS=max(8, next_power_of_2(num_rows)),
        TILES=layout.tiles,
        WARPS=layout.num_warps,
        PART=layout.part,
        AHEAD=layout.ahead,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        HAS_NORM=norm_weight is not None,
        ADD_ONE=norm_add_one,
        ACT=act or "none",
        num_warps=layout.num_warps,
        **dependent_launch(x.device),
    )
    return out
