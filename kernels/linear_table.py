"""Which layout each shape of small linear runs best in; None where cuBLAS is faster."""

from __future__ import annotations

from dataclasses import dataclass

from tokenbus.kernels.launch import ceil_div, next_power_of_2


@dataclass(frozen=True, slots=True)
class LinearTuning:
    """How one shape is laid out on the chip.

    block_n: outputs per program. block_k: columns per step. stages: steps in flight.
    slices: column slices per step, 1 or num_warps. early: whether weights are fetched into the
    L2 cache while the previous kernel still runs, which pays as long as they fit in there.
    """

    block_n: int
    block_k: int
    num_warps: int
    stages: int = 3
    slices: int = 1
    early: bool = False


# (columns, outputs, gated), one row of x; swept on an H200 with the fusions of a decoder layer.
_ONE_ROW: dict[tuple[int, int, bool], LinearTuning | None] = {
    (1024, 4096, False): LinearTuning(4, 1024, 4),
    (2048, 1024, False): LinearTuning(1, 2048, 1),
    (1024, 3072, True): LinearTuning(2, 1024, 2),
    (3072, 1024, False): LinearTuning(4, 2048, 8),
    (1024, 151936, False): LinearTuning(4, 1024, 4),
    (4096, 6144, False): LinearTuning(4, 4096, 4),
    (4096, 4096, False): LinearTuning(2, 2048, 4),
    (4096, 14336, True): LinearTuning(4, 1024, 4),
    (14336, 4096, False): LinearTuning(2, 2048, 4),
    (4096, 128256, False): None,
}
# The same for 2 to 16 rows.
_FEW_ROWS: dict[tuple[int, int, bool], LinearTuning | None] = {
    (1024, 4096, False): LinearTuning(32, 512, 4, stages=4, early=True),
    (2048, 1024, False): LinearTuning(16, 1024, 4, slices=4, early=True),
    (1024, 3072, True): LinearTuning(32, 256, 4, stages=4, early=True),
    (3072, 1024, False): LinearTuning(16, 1024, 4, slices=4, early=True),
    (1024, 151936, False): None,
    (4096, 6144, False): LinearTuning(64, 256, 4, stages=4),
    (4096, 4096, False): LinearTuning(16, 256, 2, stages=4),
    (4096, 14336, True): LinearTuning(32, 256, 4),
    (14336, 4096, False): LinearTuning(16, 256, 2, stages=4),
    (4096, 128256, False): None,
}
# Outputs from which on the few-row kernel has nothing left to win over cuBLAS.
_WIDE = 65536


def choose_tuning(
    num_rows: int, width_in: int, width_out: int, *, gated: bool
) -> LinearTuning | None:
    """Pick the layout for a shape: swept where it is in the table, else by its likes."""
    shape = (width_in, width_out, gated)
    if num_rows == 1:
        if shape in _ONE_ROW:
            return _ONE_ROW[shape]
        return LinearTuning(2, min(1024, next_power_of_2(width_in)), 2)
    if shape in _FEW_ROWS:
        return _FEW_ROWS[shape]
    if width_out >= _WIDE:
        return None
    if not gated and width_out <= 2048 and width_in >= 1024:
        return LinearTuning(16, 1024, 4, slices=4, early=True)
    # Twice as many programs as an H100 has multiprocessors, as far as that goes.
    block_n = 64
    while block_n > 16 and ceil_div(width_out, block_n) < 264:
        block_n //= 2
    if gated:
        block_n = max(16, block_n // 2)
    block_k = min(256, next_power_of_2(width_in))
    return LinearTuning(block_n, block_k, 4 if block_n > 16 else 2, stages=4)
