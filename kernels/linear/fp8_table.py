"""The tuning table of FP8 linears: the layout for a shape, from one row to thousands."""

from __future__ import annotations

from tokenbus.kernels.linear.fp8_matmul import MatmulTuning
from tokenbus.kernels.linear.fp8_rows import RowsTuning
from tokenbus.kernels.linear.table import LinearRole, LinearTuning

# Rows up to which the weights are the tall operand of the product.
MAX_TALL_ROWS = 128


def choose_matvec_tuning(width_in: int, width_out: int, role: LinearRole) -> LinearTuning:
    """Pick the layout for one row."""
    del width_out, role
    if width_in >= 4096:
        return LinearTuning(4, 2048, 4)
    return LinearTuning(4, 1024, 4)


def choose_rows_tuning(
    num_rows: int, width_in: int, width_out: int, role: LinearRole
) -> RowsTuning:
    """Pick the layout for 2 to 128 rows."""
    del num_rows, width_in
    if role is LinearRole.GATED:
        return RowsTuning(64, 128, 4, 4)
    return RowsTuning(64, 256, 4, 5, splits=2 if width_out <= 8192 else 1)


def choose_matmul_tuning(num_rows: int, width_in: int, width_out: int) -> MatmulTuning:
    """Pick the layout for more rows."""
    del width_in, width_out
    if num_rows <= 512:
        return MatmulTuning(64, 128, 128, 4, 5, halves=False)
    return MatmulTuning(128, 256, 128, 8, 3)
