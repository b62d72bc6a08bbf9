"""The tuning table of small linears: the best layout for a shape, None where cuBLAS is faster.

Swept on an H200 over the layers of sixteen models from 135M to 14B parameters, 1 and 8 rows, with
the fusions of a decoder layer: up to 37 layouts for each of 57 shapes. What the rules below pick is
mostly the best of them, and 10 % slower than that at the worst but for a few narrow shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from tokenbus.kernels.launch import ceil_div


class LinearRole(Enum):
    """What surrounds a product, and decides what its time goes into."""

    PLAIN = "plain"
    NORM = "norm"
    GATED = "gated"
    RESIDUAL = "residual"


@dataclass(frozen=True, slots=True)
class LinearTuning:
    """How one shape is laid out on the chip.

    block_n: outputs per program. block_k: columns per step. stages: steps in flight.
    slices: column slices per step, 1 or num_warps. early: columns of the weights that are fetched
    into the L2 cache while the previous kernel still runs, which pays as long as they fit in there.
    width: outputs of the block_n that a program fills, 0: all. norm_apart: whether a norm in front
    has a launch of its own. Two to 16 rows only.
    One row only: groups of outputs that a program has in turn, ahead: pieces of block_n outputs and
    block_k columns in flight, by_warp: whether a warp has whole rows of the weight.
    """

    block_n: int
    block_k: int
    num_warps: int
    stages: int = 3
    slices: int = 1
    early: int = 0
    width: int = 0
    norm_apart: bool = False
    groups: int = 1
    ahead: int = 1
    by_warp: bool = False


# Outputs from which on the few-row kernel has nothing left to win over cuBLAS, nor the one-row
# kernel over the widest of them.
_WIDE = 65536
# Weights of fewer bytes are worth fetching early: the L2 cache holds 50 MB.
_EARLY_BYTES = 40_000_000
# Columns of larger ones that are.
_HEAD = 1024
# Multiprocessors of an H100 or H200.
_PROCESSORS = 132


def choose_tuning(
    num_rows: int, width_in: int, width_out: int, role: LinearRole
) -> LinearTuning | None:
    """Pick the layout for [num_rows, width_in] times [width_out, width_in] transposed."""
    if num_rows == 1:
        return _for_one_row(width_in, width_out, role)
    if width_out >= _WIDE:
        return None
    if role is LinearRole.GATED:
        return _for_gate(width_in, width_out)
    if role is LinearRole.NORM:
        return _behind_norm(width_in, width_out)
    return _before_sum(width_in, width_out)


def _for_one_row(width_in: int, width_out: int, role: LinearRole) -> LinearTuning | None:
    if width_out >= _WIDE and width_in > 4096:
        return None
    if role is LinearRole.GATED:
        if width_in <= 1024:
            return LinearTuning(2, 1024, 2 if width_in == 1024 else 4)
        if width_in <= 2048:
            return LinearTuning(1, 1024, 1)
        return LinearTuning(4, 1024, 4) if width_in == 4096 else LinearTuning(2, 1024, 2)
    if role is LinearRole.RESIDUAL:
        return _for_one_row_before_sum(width_in, width_out)
    if role is LinearRole.NORM and width_in == 2048 and width_out >= 4096:
        return LinearTuning(4, 2048, 4)
    if width_in <= 2048:
        return LinearTuning(4, 1024, 4)
    # A whole row of x per step, as long as that is not too much.
    return LinearTuning(4, 4096, 4) if 2560 < width_in <= 4096 else LinearTuning(2, 1024, 2)


def _for_one_row_before_sum(width_in: int, width_out: int) -> LinearTuning:
    if width_in <= 1024 or width_in >= 6144:
        return LinearTuning(4, 1024, 4)
    if width_in <= 2048:
        return LinearTuning(2, 2048, 4)
    if width_in == 4096 and width_out == 2048:
        # All of a program's weights are on their way while the attention before it runs.
        return LinearTuning(4, 1024, 4, ahead=4)
    if width_out <= 1024 or width_in == 4096:
        return LinearTuning(4, 4096, 4)
    return LinearTuning(2, 1024, 2)


def _early(width_in: int, num_outputs: int) -> int:
    return width_in if 2 * width_in * num_outputs < _EARLY_BYTES else 0


def _for_gate(width_in: int, width_out: int) -> LinearTuning:
    early = _early(width_in, 2 * width_out)
    if width_in <= 1024 and width_out <= 4096:
        return LinearTuning(32, 256, 4, stages=4, early=early)
    # Two programs live on a multiprocessor at a time: outputs are dealt out in whole rounds of
    # these, as many as it takes for tiles of 32.
    rounds = 1
    while ceil_div(width_out, 2 * rounds * _PROCESSORS) > 32:
        rounds += 1
    width = ceil_div(width_out, 2 * rounds * _PROCESSORS)
    if width <= 20:
        # Too much of each tile would stay empty.
        return LinearTuning(16, 256, 2, stages=4, early=early)
    return LinearTuning(32, 256, 4, stages=3, early=early, width=width)


def _behind_norm(width_in: int, width_out: int) -> LinearTuning | None:
    early = _early(width_in, width_out)
    if width_in <= 1024:
        return LinearTuning(32, 512, 4, stages=4 if width_in == 1024 else 3, early=early)
    if width_in < 2048:
        return LinearTuning(16, 1024, 4, slices=4, early=early)
    width = ceil_div(width_out, _PROCESSORS)
    if width_in >= 5120 and 32 < width <= 64:
        return LinearTuning(64, 256, 4, stages=4, early=early, width=width)
    # The norm scales every element of x again in every program: a product behind the norm's own
    # kernel is faster from here on.
    if width_in == 4096 and 32 < width < 64:
        return replace(_before_sum(width_in, width_out), norm_apart=True)
    return None


def _before_sum(width_in: int, width_out: int) -> LinearTuning:
    early = _early(width_in, width_out)
    if width_in < 1024:
        return LinearTuning(16, 256, 2, stages=4, early=early)
    if width_out <= 2048 <= width_in // 2:
        return LinearTuning(16, 512, 4, stages=6, slices=4, early=early)
    if width_out <= 2048:
        return LinearTuning(16, 1024, 4, slices=4, early=early)
    if width_out >= 5120:
        # Of few inputs each multiprocessor gets a tile: 0.9 us less than whole ones for 80 of them.
        width = 8 * ceil_div(width_out, 8 * _PROCESSORS)
        fits = width_in <= 4096 and width < 64
        early = early or (_HEAD if fits else 0)
        return LinearTuning(64, 256, 4, stages=4, early=early, width=width if fits else 0)
    width = ceil_div(width_out, _PROCESSORS)
    if width_in >= 4096 and 24 < width <= 32:
        # Many weights for each of the outputs, a tile for each multiprocessor.
        return LinearTuning(32, 256, 4, stages=6, early=early or _HEAD, width=width)
    return LinearTuning(16, 512, 4, stages=4, slices=4, early=early)
