"""Rows of a sampler's packed table, and keys whose stream holds a uniform of one's choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tokenbus.engine.sampling.row_table import RowTable
from tokenbus.engine.types import SamplingParams
from tokenbus.kernels.sampling.workspace import RowColumns

if TYPE_CHECKING:
    from collections.abc import Sequence

_MASK64 = (1 << 64) - 1
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def columns_of(rows: Sequence[SamplingParams], choices: Sequence[int]) -> RowColumns:
    """Return the packed table of rows, on the CPU."""
    table = RowTable(len(rows), (), torch.device("cpu"))
    for row, (params, choice) in enumerate(zip(rows, choices, strict=True)):
        table.write(row, params, choice)
    return RowColumns(table.floats, table.ints, table.stop_ids)


def columns_with_uniforms(
    filters: Sequence[tuple[float, int, float, float]],
    u: Sequence[float],
    is_random: Sequence[int],
    positions: Sequence[int],
) -> RowColumns:
    """Return rows of (temperature, top-k, top-p, min-p) that draw by `u` at their positions."""
    columns = columns_of(
        [
            SamplingParams(temperature=t, top_k=k, top_p=p, min_p=least)
            for t, k, p, least in filters
        ],
        [0] * len(filters),
    )
    for row, (value, position) in enumerate(zip(u, positions, strict=True)):
        columns.floats[row, 0] = filters[row][0]
        key = _key_for(value, position)
        columns.ints[row, 0] = key - (1 << 64) if key >> 63 else key
        columns.ints[row, 1] = 1
        columns.ints[row, 4] = is_random[row]
    return columns


def _key_for(u: float, position: int) -> int:
    """Return the key whose stream has `u`, rounded to 53 bits, at a position by steps of 1."""
    z = min(int(u * 2.0**53), 2**53 - 1) << 11
    z = _unshift(z, 31)
    for multiplier, bits in zip(reversed(_MULTIPLIERS), (27, 30), strict=True):
        z = _unshift(z * pow(multiplier, -1, 1 << 64) & _MASK64, bits)
    return (z - (position + 1)) & _MASK64


def _unshift(value: int, bits: int) -> int:
    """Take back z ^ (z >> bits)."""
    found = value
    for _ in range(64 // bits + 1):
        found = value ^ (found >> bits)
    return found
