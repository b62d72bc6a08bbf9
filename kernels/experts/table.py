"""The tuning table of experts: how their products are laid out for a number of rows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GroupTuning:
    """How the products of sorted pairs are laid out.

    block_n: outputs per program, of the gate and of what it gates each; block_k: columns per step;
    stages: steps in flight. turned: outputs take the long side of the matrix unit, whose tile has
    64 of them, and pairs the short one.
    """

    block_n: int
    block_k: int
    stages: int
    num_warps: int
    turned: bool = False


@dataclass(frozen=True, slots=True)
class RowTuning:
    """How the products of a lone row are laid out: outputs of a program, and columns of a step."""

    block_n: int
    block_k: int
    num_warps: int


def tile_rows_for(num_pairs: int, num_experts: int) -> int:
    """Return how many pairs of one expert share a tile: about as many as an expert gets."""
    mean = num_pairs / num_experts
    if mean <= 8:
        return 16
    if mean <= 24:
        return 32
    return 64 if mean <= 64 else 128


def up_tuning(tile_rows: int) -> GroupTuning:
    """Pick the layout of gates and what they gate."""
    if tile_rows <= 32:
        return GroupTuning(64, 128, 4, 4, turned=True)
    if tile_rows == 64:
        return GroupTuning(64, 64, 4, 4)
    return GroupTuning(128, 64, 3, 8)


def down_tuning(tile_rows: int) -> GroupTuning:
    """Pick the layout of the products behind the gates."""
    if tile_rows <= 32:
        return GroupTuning(128, 128, 4, 4, turned=True)
    if tile_rows == 64:
        return GroupTuning(128, 64, 4, 4)
    return GroupTuning(256, 64, 3, 8)


def up_row_tuning(width: int) -> RowTuning:
    """Pick the layout of a lone row's gates and what they gate."""
    del width
    return RowTuning(4, 1024, 4)


def down_row_tuning(inner: int) -> RowTuning:
    """Pick the layout of a lone row's products behind the gates."""
    return RowTuning(4, 256 if inner <= 1024 else 1024, 4)
