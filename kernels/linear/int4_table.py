"""The tuning table of linears with weights of four bits: the layout for a shape.

Swept on an H200 over the four linears of an 8B layer; benchmarks/RESULTS.md has the figures.
"""

from __future__ import annotations

from tokenbus.kernels.launch import ceil_div, next_power_of_2
from tokenbus.kernels.linear.int4_layout import BLOCK
from tokenbus.kernels.linear.int4_matmul import Int4Tuning
from tokenbus.kernels.linear.table import LinearRole

# Multiprocessors of an H100 or H200.
_PROCESSORS = 132
# Rows from which on weights are written out for cuBLAS.
_MAX_ROWS = 512
# Outputs and warps of a program that writes them out.
WIDEN_TILE = (64, 4)


def choose_int4_tuning(
    num_rows: int, width_in: int, width_out: int, role: LinearRole, *, group: int = BLOCK
) -> Int4Tuning | None:
    """Pick the layout for [num_rows, width_in] times [width_out, width_in] transposed.

    None where widening the weights and cuBLAS are faster. group: inputs that share a scale.
    """
    if num_rows > _MAX_ROWS:
        return None
    outputs = width_out * (2 if role is LinearRole.GATED else 1)
    if num_rows <= 16:
        return _few_rows(width_in, outputs, by_sums=group == BLOCK)
    height = min(128, next_power_of_2(num_rows))
    return Int4Tuning(height, 64, 4, 4 if height < 128 else 3)


def _few_rows(width_in: int, outputs: int, *, by_sums: bool) -> Int4Tuning:
    blocks, tiles = ceil_div(width_in, BLOCK), ceil_div(outputs, 64)
    splits = 1
    while tiles * splits < 4 * _PROCESSORS and blocks >= 16 * splits:
        splits *= 2
    return Int4Tuning(16, 64, 4, 4, splits=splits, by_sums=by_sums)
