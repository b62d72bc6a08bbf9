"""The tuning table of linears with weights of four bits: the layout for a shape.

Swept on an H200 over the four linears of an 8B layer; benchmarks/RESULTS.md has the figures.
"""

from __future__ import annotations

from tokenbus.kernels.launch import ceil_div, next_power_of_2
from tokenbus.kernels.linear.int4_layout import BLOCK
from tokenbus.kernels.linear.int4_matmul import Int4RowsTuning, Int4Tuning
from tokenbus.kernels.linear.table import LinearRole
from tokenbus.kernels.split_rows import MAX_SPLIT_ROWS

# Multiprocessors of an H100 or H200.
_PROCESSORS = 132
# Rows from which on weights are written out for cuBLAS.
_MAX_ROWS = 256
# Outputs and warps of a program that writes them out.
WIDEN_TILE = (64, 4)


def choose_int4_tuning(
    num_rows: int, width_in: int, width_out: int, role: LinearRole, *, splits_rows: bool = True
) -> Int4Tuning | Int4RowsTuning | None:
    """Pick the layout for [num_rows, width_in] times [width_out, width_in] transposed.

    None where widening the weights and cuBLAS are faster. splits_rows: a few rows may be split.
    """
    if num_rows > _MAX_ROWS:
        return None
    outputs = width_out * (2 if role is LinearRole.GATED else 1)
    if num_rows <= MAX_SPLIT_ROWS:
        splits = _splits(width_in, outputs, 7 * _PROCESSORS)
        if splits_rows:
            return Int4RowsTuning(64, 4, 3, blocks=2, splits=splits)
        return Int4Tuning(16, 64, 4, 4, splits=splits)
    height = min(128, next_power_of_2(num_rows))
    return Int4Tuning(height, 64, 4, 4 if height < 128 else 3)


def _splits(width_in: int, outputs: int, programs: int) -> int:
    """Return how many programs share a tile, so that there are no more than so many."""
    tiles, splits = ceil_div(outputs, 64), 1
    while 2 * splits * tiles <= programs and width_in >= 2 * splits * 6 * BLOCK:
        splits *= 2
    return splits
