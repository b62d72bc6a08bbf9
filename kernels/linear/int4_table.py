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
# Outputs from which on tiles alone keep the whole chip busy, and inputs from which on a tile's are
# worth a long queue.
_WIDE, _LONG = 16384, 8192
# Outputs and warps of a program that writes weights out.
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
    if splits_rows and num_rows <= MAX_SPLIT_ROWS:
        return _few_rows(num_rows, width_in, outputs)
    height = max(16, min(128, next_power_of_2(num_rows)))
    limit = 2 * _PROCESSORS
    if height == 128 >= num_rows and outputs < _WIDE and width_in < _LONG:
        height, limit = 64, 3 * _PROCESSORS
    if height == 64 and outputs >= _WIDE:
        return Int4Tuning(height, 128, 4, 3)
    tiles = ceil_div(num_rows, height) * ceil_div(outputs, 64)
    splits = _splits(width_in, tiles, 16, limit)
    return Int4Tuning(height, 64, 4, 4 if height < 64 else 3, splits=splits)


def _few_rows(num_rows: int, width_in: int, outputs: int) -> Int4RowsTuning:
    if outputs >= _WIDE:
        if num_rows > 8:
            return Int4RowsTuning(128, 4, 3, blocks=2)
        splits = _splits(width_in, ceil_div(outputs, 64), 16, 7 * _PROCESSORS)
        return Int4RowsTuning(64, 4, 2, blocks=2, splits=splits)
    if num_rows > 8 or width_in >= _LONG:
        splits = _splits(width_in, ceil_div(outputs, 128), 8, 3 * _PROCESSORS)
        return Int4RowsTuning(128, 4, 3, blocks=2, splits=splits)
    splits = _splits(width_in, ceil_div(outputs, 64), 4, 6 * _PROCESSORS)
    return Int4RowsTuning(64, 4, 2, blocks=4, splits=splits)


def _splits(width_in: int, tiles: int, least: int, limit: int) -> int:
    """Return how many programs share a tile: `least` blocks each, `limit` programs in all."""
    splits = 1
    while 2 * splits * tiles <= limit and 2 * splits * least * BLOCK <= width_in:
        splits *= 2
    return splits
