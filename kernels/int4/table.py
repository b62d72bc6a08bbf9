"""The tuning table of linears with weights of four bits: the layout for a shape.

Swept on an H200 over the four linears of an 8B layer; benchmarks/RESULTS.md has the figures.
"""

from __future__ import annotations

from tokenbus.kernels.int4.layout import BLOCK
from tokenbus.kernels.int4.matmul import Int4RowsTuning, Int4Tuning
from tokenbus.kernels.int4.split_rows import MAX_SPLIT_ROWS
from tokenbus.kernels.int4.vector import Int4VectorTuning
from tokenbus.kernels.launch import ceil_div, next_power_of_2
from tokenbus.kernels.linear.table import LinearRole

# Multiprocessors of an H100 or H200.
_PROCESSORS = 132
# Rows up to which writing weights out for cuBLAS costs more than it gains.
_MAX_ROWS = 256
# Outputs from which on tiles alone keep the whole chip busy, and inputs from which on a tile's are
# worth a long queue.
_WIDE, _LONG = 16384, 8192
# Blocks up to which a lone row's fit into the registers of a program.
_MAX_VECTOR_BLOCKS = 128
# Outputs and warps of a program that writes weights out.
WIDEN_TILE = (64, 4)


def choose_int4_tuning(
    num_rows: int,
    width_in: int,
    width_out: int,
    role: LinearRole,
    *,
    splits_rows: bool = True,
    takes_vector: bool = False,
) -> Int4Tuning | Int4RowsTuning | Int4VectorTuning | None:
    """Pick the layout for [num_rows, width_in] times [width_out, width_in] transposed.

    None where widening the weights and cuBLAS are faster. splits_rows: a few rows may be split.
    takes_vector: a lone row may be multiplied as it is.
    """
    outputs = width_out * (2 if role is LinearRole.GATED else 1)
    num_blocks = next_power_of_2(ceil_div(width_in, BLOCK))
    if num_rows == 1 and takes_vector and num_blocks <= _MAX_VECTOR_BLOCKS:
        return _lone_row(num_blocks, outputs)
    is_narrow = outputs < _WIDE and width_in < _LONG
    if num_rows > _MAX_ROWS:
        return None
    if splits_rows and num_rows <= MAX_SPLIT_ROWS:
        return _few_rows(num_rows, width_in, outputs)
    height = max(16, min(128, next_power_of_2(num_rows)))
    if is_narrow:
        height = min(height, 64 if num_rows <= 128 else 128)
    tiles = ceil_div(num_rows, height) * ceil_div(outputs, 64)
    if height == 128:
        return Int4Tuning(height, 64, 4, 3, splits=_splits(width_in, tiles, 16, 2 * _PROCESSORS))
    if outputs >= _WIDE and height == 64:
        return Int4Tuning(height, 128, 4, 3)
    return Int4Tuning(height, 64, 4, 4, splits=_splits(width_in, tiles, 8, 2 * _PROCESSORS))


def _lone_row(num_blocks: int, outputs: int) -> Int4VectorTuning:
    """Pick tiles of 8 outputs and how many of them a program stays for.

    Of rows that a few warps hold the programs end in several rounds, so that the next kernel finds
    room beside the last of them: five tiles each behind a gate took 58 us of a step less than the
    seven for which all find a place at once. A long row takes a multiprocessor for itself.
    """
    num_warps = max(1, min(num_blocks // 8, 8))
    if num_blocks > 32:
        return Int4VectorTuning(8, num_warps, ceil_div(outputs, 8 * _PROCESSORS))
    return Int4VectorTuning(8, num_warps, max(1, min(outputs // 3072, 5)))


def _few_rows(num_rows: int, width_in: int, outputs: int) -> Int4RowsTuning:
    if outputs >= _WIDE:
        if num_rows > 8:
            return Int4RowsTuning(128, 4, 3, blocks=2)
        splits = _splits(width_in, ceil_div(outputs, 64), 16, 7 * _PROCESSORS)
        return Int4RowsTuning(64, 4, 2, blocks=2, splits=splits)
    if num_rows > 8 or width_in >= _LONG:
        splits = _splits(width_in, ceil_div(outputs, 128), 8, 3 * _PROCESSORS)
        return Int4RowsTuning(128, 4, 3, blocks=2, splits=splits)
    splits = _splits(width_in, ceil_div(outputs, 64), 2, 8 * _PROCESSORS)
    return Int4RowsTuning(64, 4, 2, blocks=2, splits=splits)


def _splits(width_in: int, tiles: int, least: int, limit: int) -> int:
    """Return how many programs share a tile: `least` blocks each, `limit` programs in all."""
    splits = 1
    while 2 * splits * tiles <= limit and 2 * splits * least * BLOCK <= width_in:
        splits *= 2
    return splits
