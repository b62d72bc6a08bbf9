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
    """How the products of a lone row are laid out.

    block_n: outputs of a program; block_k: columns of a step; ahead: steps of the products behind
    the gates whose weights are on their way before the gates are done.
    """

    block_n: int
    block_k: int
    num_warps: int
    ahead: int = 8


@dataclass(frozen=True, slots=True)
class RouterTuning:
    """How the logits of few rows are laid out. block_l: logits of a program."""

    block_l: int
    num_warps: int


def router_tuning(num_rows: int, width: int) -> RouterTuning:
    """Pick the layout of a router of up to 16 rows.

    A lone row has a logit in a program; of 128 experts of 2,048 inputs two warps take 0.4 us of
    45 a layer less than one, and 0.15 less than two logits for them. Of 8 rows a program with 16
    logits takes 1.2 us of 150 longer than one with 8, as does one with half of its warps 0.5.
    """
    if num_rows == 1:
        return RouterTuning(1, min(8, max(1, width // 1024)))
    return RouterTuning(8, 4)


def tile_rows_for(num_pairs: int, num_experts: int) -> int:
    """Return how many pairs of one expert share a tile: about as many as an expert gets."""
    mean = num_pairs / num_experts
    if mean <= 8:
        return 16
    if mean <= 24:
        return 32
    return 64 if mean <= 64 else 128


# Swept on an H200 over 128 experts of 768 times 2,048 weights in bf16, experts chosen uniformly.
# Up to 32 pairs of an expert, all layouts but the smallest read weights at the rate of a copy.


def up_tuning(tile_rows: int) -> GroupTuning:
    """Pick the layout of gates and what they gate."""
    if tile_rows <= 16:
        return GroupTuning(64, 128, 3, 4, turned=True)
    if tile_rows <= 32:
        return GroupTuning(128, 64, 3, 8, turned=True)
    if tile_rows <= 64:
        return GroupTuning(64, 64, 4, 4)
    return GroupTuning(128, 64, 4, 8)


def down_tuning(tile_rows: int) -> GroupTuning:
    """Pick the layout of the products behind the gates."""
    if tile_rows <= 16:
        return GroupTuning(128, 128, 3, 8, turned=True)
    if tile_rows <= 32:
        return GroupTuning(64, 128, 4, 4, turned=True)
    if tile_rows <= 64:
        return GroupTuning(128, 64, 4, 4)
    return GroupTuning(256, 64, 4, 8)


def up_row_tuning(width: int, *, rounded: bool) -> RowTuning:
    """Pick the layout of a lone row's gates and what they gate; rounded: of weights in FP8.

    Of 2,048 inputs in FP8, warps by themselves take 0.5 us of 41 a layer less than two together.
    """
    if rounded:
        return RowTuning(2, 512, 1) if width <= 2048 else RowTuning(4, 1024, 4)
    return RowTuning(4, 2048 if width <= 2048 else 1024, 4)


def down_row_tuning(inner: int, *, rounded: bool) -> RowTuning:
    """Pick the layout of a lone row's products behind the gates.

    Of 768 inputs, warps by themselves take 1.3 us of 51 a layer less than four together in bf16,
    and 2.4 of 41 in FP8. Of 14,336 inputs in FP8 the compiler has no registers for four outputs.
    """
    if inner <= 1024:
        return RowTuning(2, 256, 1, ahead=12)
    return RowTuning(2 if rounded else 4, 1024, 4, ahead=4)


def fp8_up_tuning(tile_rows: int) -> GroupTuning:
    """Pick the layout of gates and what they gate in FP8; 128 outputs share a scale."""
    if tile_rows <= 32:
        return GroupTuning(128, 128, 3, 4, turned=True)
    if tile_rows <= 64:
        return GroupTuning(128, 128, 3, 8, turned=True)
    return GroupTuning(128, 128, 4, 8)


def fp8_down_tuning(tile_rows: int) -> GroupTuning:
    """Pick the layout of the products behind the gates in FP8, whose steps have 128 columns."""
    if tile_rows <= 32:
        return GroupTuning(128, 128, 3, 4, turned=True)
    if tile_rows <= 64:
        return GroupTuning(128, 128, 4, 8, turned=True)
    return GroupTuning(128, 128, 4, 8)
