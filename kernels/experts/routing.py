"""Routing: which experts each row goes to, with which weights, and the list of work of a pass.

All of it stays on the device: the list is as long as it can get, and says itself how much of it is
filled, so one CUDA graph serves whatever a router decides. Nothing is dropped and nothing padded:
an expert gets as many tiles as its rows fill. Each expert has a program that finds its own rows, so
nothing is sorted and nothing is counted by atomics.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.experts.scores import NO_SCORE, RouterRule, check_logits, scores_of
from tokenbus.kernels.launch import (
    dependent_launch,
    next_power_of_2,
    release_successor,
    wait_for_inputs,
)

if TYPE_CHECKING:
    from torch import Tensor

# Rows that are listed at a time.
_LISTED_ROWS, _MANY_LISTED_ROWS = 256, 1024
_FIELDS = tl.constexpr(3)
# More than there are experts.
_EXPERTS = tl.constexpr(1 << 20)
# Tiles of an expert that are written at a time.
_TILES = tl.constexpr(16)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The experts of T rows: experts: [T, top_k] int32, the likeliest first; weights: float32."""

    experts: Tensor
    weights: Tensor

    @classmethod
    def empty(cls, num_rows: int, top_k: int, device: torch.device) -> Chosen:
        """Allocate what a kernel will write."""
        return cls(
            torch.empty(num_rows, top_k, dtype=torch.int32, device=device),
            torch.empty(num_rows, top_k, dtype=torch.float32, device=device),
        )


@dataclass(frozen=True, slots=True)
class Routing:
    """The experts of T rows, and their work by expert; a pair is row * top_k + place.

    order: [T * top_k] int32, pairs sorted by expert, then by row.
    tiles: [most, 3] int32 of expert, first place in `order` and number of pairs: up to `tile_rows`
        of one expert, 0 in tiles that stay empty.
    """

    chosen: Chosen
    order: Tensor
    tiles: Tensor
    tile_rows: int

    @property
    def top_k(self) -> int:
        """Experts of a row."""
        return self.chosen.experts.shape[1]


@triton.jit
def _places_of_equals(score, TOP: tl.constexpr, BLOCK_E: tl.constexpr):
    """Return the place of each expert, of equal ones the lower number first; TOP if it has none."""
    e = tl.arange(0, BLOCK_E)
    place = tl.full([BLOCK_E], TOP, tl.int32)
    for turn in tl.static_range(TOP):
        best = tl.max(score, axis=0)
        is_next = e == tl.min(tl.where(score == best, e, BLOCK_E), axis=0)
        place = tl.where(is_next, turn, place)
        score = tl.where(is_next, NO_SCORE, score)
    return place


@triton.jit
def _choose_kernel(
    logits, experts, weights, stride, E, TOP: tl.constexpr, BLOCK_E: tl.constexpr,
    RENORMALISE: tl.constexpr, BY_LOGITS: tl.constexpr, UNIFORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Choose the experts of a row.

    A warp does that alone: what it compares has 32 bits, of which it takes the largest in one
    instruction.
    """
    release_successor(PDL)
    row = tl.program_id(0).to(tl.int64)
    wait_for_inputs(PDL)
    share, score = scores_of(logits + row * stride, E, BLOCK_E, BY_LOGITS, UNIFORM)
    # Each expert keeps its own place: nothing is moved before the end.
    place = tl.full([BLOCK_E], TOP, tl.int32)
    left = score
    for turn in tl.static_range(TOP):
        is_best = left == tl.max(left, axis=0)
        place = tl.where(is_best, turn, place)
        left = tl.where(is_best, NO_SCORE, left)
    # Each turn chose one expert unless some are equal, which is rare: then again, one at a time.
    tally = tl.sum(tl.where(place < TOP, _EXPERTS + place, 0), axis=0)
    if tally != TOP * _EXPERTS + TOP * (TOP - 1) // 2:
        place = _places_of_equals(score, TOP, BLOCK_E)
    is_chosen = place < TOP
    if RENORMALISE:
        share /= tl.sum(tl.where(is_chosen, share, 0.0), axis=0)
    out = row * TOP + place
    tl.store(experts + out, tl.arange(0, BLOCK_E), mask=is_chosen)
    tl.store(weights + out, share, mask=is_chosen)


@triton.jit
def _own_pairs(experts, valid, rows, expert, TOP: tl.constexpr, BLOCK_TOP: tl.constexpr):
    """Tell of each row whether it goes to an expert, 0 or 1, and the pair that it makes then."""
    places = tl.arange(0, BLOCK_TOP)[None, :]
    mine = ((experts == expert) & valid).to(tl.int32)
    return tl.sum(mine, axis=1), rows * TOP + tl.sum(mine * places, axis=1)


@triton.jit
def _write_tiles(tiles, expert, start, count, TILE_ROWS: tl.constexpr, BY_PAIR: tl.constexpr):
    """Write an expert's tiles, and empty ones up to where the next expert's begin.

    BY_PAIR: there is a place for each pair, else as many as all could fill at the worst.
    """
    if BY_PAIR:
        first = start
        num_places = count
    else:
        first = expert + start // TILE_ROWS
        num_places = 1 + (start + count) // TILE_ROWS - start // TILE_ROWS
    for turn in range(0, num_places, _TILES):
        number = turn + tl.arange(0, _TILES)
        place = tiles + (first + number) * _FIELDS
        mask = number < num_places
        before = number * TILE_ROWS
        tl.store(place, tl.zeros_like(number) + expert, mask=mask)
        tl.store(place + 1, start + before, mask=mask)
        size = tl.minimum(tl.maximum(count - before, 0), TILE_ROWS)
        tl.store(place + 2, size, mask=mask)


@triton.jit(do_not_specialize=["T"])
def _list_kernel(
    experts, order, tiles, watch, T, ROWS: tl.constexpr, TOP: tl.constexpr, BLOCK_TOP: tl.constexpr,
    TILE_ROWS: tl.constexpr, BY_PAIR: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """List the pairs of one expert."""
    release_successor(PDL)
    expert = tl.program_id(0)
    places = tl.arange(0, BLOCK_TOP)[None, :]
    start = tl.full([], 0, tl.int32)
    count = tl.full([], 0, tl.int32)
    wait_for_inputs(PDL)
    for first in range(0, T, ROWS):
        rows = first + tl.arange(0, ROWS)
        valid = (rows < T)[:, None] & (places < TOP)
        found = tl.load(experts + rows[:, None] * TOP + places, mask=valid, other=0)
        start += tl.sum(tl.sum((valid & (found < expert)).to(tl.int32), axis=1), axis=0)
    for first in range(0, T, ROWS):
        rows = first + tl.arange(0, ROWS)
        valid = (rows < T)[:, None] & (places < TOP)
        found = tl.load(experts + rows[:, None] * TOP + places, mask=valid, other=0)
        own, pair = _own_pairs(found, valid, rows, expert, TOP, BLOCK_TOP)
        before = tl.cumsum(own, axis=0) - own
        tl.store(order + start + count + before, pair, mask=own > 0)
        count += tl.sum(own, axis=0)
    _write_tiles(tiles, expert, start, count, TILE_ROWS, BY_PAIR)
    if watch is not None:
        tl.atomic_add(watch, (count > 0).to(tl.int64))
        tl.atomic_add(watch + 1, (expert == 0).to(tl.int64))


def choose(logits: Tensor, rule: RouterRule) -> Chosen:
    """Choose the experts of every row.

    Args:
        logits: [T, columns], T >= 1, columns next to each other; those of experts come first.
    Returns: a Chosen; scores are fp32, the sums of weights too. Twin: reference.route.
    Raises: KernelInputError if rule and logits do not fit.
    """
    check_logits(logits, rule)
    chosen = Chosen.empty(logits.shape[0], rule.top_k, logits.device)
    launch_choice(logits, chosen, rule)
    return chosen


def launch_choice(logits: Tensor, chosen: Chosen, rule: RouterRule) -> None:
    """Write the experts of every row to `chosen`; see `choose`."""
    # A warp for each row: nothing passes between warps at every turn.
    _choose_kernel[(logits.shape[0],)](
        logits,
        chosen.experts,
        chosen.weights,
        logits.stride(0),
        rule.num_experts,
        num_warps=1,
        **rule.options(),
        **dependent_launch(logits.device),
    )


def route(
    logits: Tensor, rule: RouterRule, tile_rows: int, *, watch: Tensor | None = None
) -> Routing:
    """Choose the experts of every row, and list the work by them.

    Args:
        logits: [T, columns], T >= 1, columns next to each other; those of experts come first.
        tile_rows: pairs of one expert in a tile, at most.
        watch: [2] int64 or None: the number of experts that got any row is added to the first,
            1 to the second.
    Returns: a Routing; scores are fp32, the sums of weights too. Twin: reference.route.
    Raises: KernelInputError if rule and logits do not fit.
    """
    check_logits(logits, rule)
    num_rows, top_k, device = logits.shape[0], rule.top_k, logits.device
    chosen = choose(logits, rule)
    num_pairs = num_rows * top_k
    most = rule.num_experts + num_pairs // tile_rows
    routing = Routing(
        chosen,
        torch.empty(num_pairs, dtype=torch.int32, device=device),
        torch.empty(min(num_pairs, most), 3, dtype=torch.int32, device=device),
        tile_rows,
    )
    _list_kernel[(rule.num_experts,)](
        chosen.experts,
        routing.order,
        routing.tiles,
        watch,
        num_rows,
        ROWS=_LISTED_ROWS if num_rows <= _LISTED_ROWS else _MANY_LISTED_ROWS,
        TOP=top_k,
        BLOCK_TOP=next_power_of_2(top_k),
        TILE_ROWS=tile_rows,
        BY_PAIR=num_pairs <= most,
        num_warps=8,
        **dependent_launch(device),
    )
    return routing
