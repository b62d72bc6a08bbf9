"""Routing: which experts each row goes to, with which weights, and the list of work of a pass.

All of it stays on the device: the list is as long as it can get, and
says itself how much of it is filled, so one CUDA graph serves whatever a router decides. Nothing is
dropped and nothing padded: an expert gets as many tiles as its rows fill.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.experts.scores import NO_KEY, RouterRule, check_logits, expert_of, scores_of
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    next_power_of_2,
    release_successor,
    wait_for_inputs,
)

if TYPE_CHECKING:
    from torch import Tensor

# Rows that one program takes with the rest of the work behind them, without a second launch.
ONE_BLOCK_ROWS = 16
# Numbers of the scores of a block: what the registers of a program hold of them.
_BLOCK_SCORES = 4096
_FIELDS = tl.constexpr(3)
# Blocks whose counts are added up at a time.
_COUNTED = tl.constexpr(32)


@dataclass(frozen=True, slots=True)
class Routing:
    """The experts of T rows, and their work by expert; `pair` is row * top_k + place.

    experts: [T, top_k] int32, the likeliest first; weights: [T, top_k] float32.
    order: [T * top_k] int32, pairs sorted by expert, then by row.
    tiles: [most, 3] int32 of expert, first place in `order` and number of pairs, up to `tile_rows`
        of one expert; num_tiles: [1] int32, how many there are.
    """

    experts: Tensor
    weights: Tensor
    order: Tensor
    tiles: Tensor
    num_tiles: Tensor
    tile_rows: int

    @property
    def top_k(self) -> int:
        """Experts of a row."""
        return self.experts.shape[1]


@triton.jit
def _list_tiles(total, tiles, num_tiles, watch, BLOCK_E: tl.constexpr, TILE_ROWS: tl.constexpr):
    """Write the tiles of all experts; total: [BLOCK_E] pairs of each."""
    e = tl.arange(0, BLOCK_E)
    each = (total + TILE_ROWS - 1) // TILE_ROWS
    first = tl.cumsum(each, axis=0) - each
    start = tl.cumsum(total, axis=0) - total
    for turn in range(tl.max(each, axis=0)):
        mask = turn < each
        place = tiles + (first + turn) * _FIELDS
        tl.store(place, e, mask=mask)
        tl.store(place + 1, start + turn * TILE_ROWS, mask=mask)
        tl.store(place + 2, tl.minimum(total - turn * TILE_ROWS, TILE_ROWS), mask=mask)
    tl.store(num_tiles, tl.sum(each, axis=0))
    if watch is not None:
        tl.atomic_add(watch, tl.sum((total > 0).to(tl.int64), axis=0))
        tl.atomic_add(watch + 1, tl.full([], 1, tl.int64))


@triton.jit
def _sort_pairs(order, place_of, rows, start, TOP: tl.constexpr):
    """Write pairs to their places; place_of: [R, BLOCK_E], 1 + place of an expert, 0 if not chosen.

    start: [BLOCK_E], where the first of these rows' pairs of each expert goes.
    """
    chosen = (place_of > 0).to(tl.int32)
    before = tl.cumsum(chosen, axis=0) - chosen
    pair = rows[:, None] * TOP + place_of - 1
    tl.store(order + start[None, :] + before, pair, mask=place_of > 0)


@triton.jit(do_not_specialize=["T"])
def _choose_kernel(
    logits, experts, weights, counts, order, tiles, num_tiles, watch, T, stride, E,
    ROWS: tl.constexpr, TOP: tl.constexpr, BLOCK_TOP: tl.constexpr, BLOCK_E: tl.constexpr,
    TILE_ROWS: tl.constexpr, ONE_BLOCK: tl.constexpr, RENORMALISE: tl.constexpr,
    BY_LOGITS: tl.constexpr, UNIFORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Choose the experts of ROWS rows; count them per expert, or list their work if they are all.

    counts: [blocks, BLOCK_E] int32.
    """
    release_successor(PDL)
    block = tl.program_id(0)
    rows = block * ROWS + tl.arange(0, ROWS)
    some = rows < T
    wait_for_inputs(PDL)
    share, key = scores_of(logits, rows, some, stride, E, BLOCK_E, BY_LOGITS, UNIFORM)
    e = tl.arange(0, BLOCK_E)
    places = tl.arange(0, BLOCK_TOP)[None, :]
    chosen_experts = tl.zeros([ROWS, BLOCK_TOP], tl.int32)
    chosen_weights = tl.zeros([ROWS, BLOCK_TOP], tl.float32)
    place_of = tl.zeros([ROWS, BLOCK_E], tl.int32)
    for turn in range(TOP):
        best = tl.max(key, axis=1, keep_dims=True)
        hit = key == best
        expert = expert_of(best).to(tl.int32)
        weight = tl.sum(tl.where(hit, share, 0.0), axis=1, keep_dims=True)
        chosen_experts = tl.where(places == turn, expert, chosen_experts)
        chosen_weights = tl.where(places == turn, weight, chosen_weights)
        place_of = tl.where(hit & some[:, None], turn + 1, place_of)
        key = tl.where(hit, NO_KEY, key)
    if RENORMALISE:
        chosen_weights /= tl.sum(chosen_weights, axis=1, keep_dims=True)
    mask = some[:, None] & (places < TOP)
    out = rows[:, None] * TOP + places
    tl.store(experts + out, chosen_experts, mask=mask)
    tl.store(weights + out, chosen_weights, mask=mask)
    total = tl.sum((place_of > 0).to(tl.int32), axis=0)
    if ONE_BLOCK:
        _sort_pairs(order, place_of, rows, tl.cumsum(total, axis=0) - total, TOP)
        _list_tiles(total, tiles, num_tiles, watch, BLOCK_E, TILE_ROWS)
    else:
        tl.store(counts + block * BLOCK_E + e, total)


@triton.jit(do_not_specialize=["T", "num_blocks"])
def _place_kernel(
    experts, counts, order, tiles, num_tiles, watch, T, num_blocks, ROWS: tl.constexpr,
    TOP: tl.constexpr, BLOCK_E: tl.constexpr, TILE_ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Sort the pairs of ROWS rows in among all; the first program lists the tiles."""
    release_successor(PDL)
    block = tl.program_id(0)
    rows = block * ROWS + tl.arange(0, ROWS)
    some = rows < T
    e = tl.arange(0, BLOCK_E)
    total = tl.zeros([BLOCK_E], tl.int32)
    before = tl.zeros([BLOCK_E], tl.int32)
    wait_for_inputs(PDL)
    for first in range(0, num_blocks, _COUNTED):
        index = first + tl.arange(0, _COUNTED)
        part = tl.load(
            counts + index[:, None] * BLOCK_E + e[None, :], mask=(index < num_blocks)[:, None],
            other=0,
        )  # fmt: skip
        total += tl.sum(part, axis=0)
        before += tl.sum(tl.where((index < block)[:, None], part, 0), axis=0)
    place_of = tl.zeros([ROWS, BLOCK_E], tl.int32)
    for turn in range(TOP):
        expert = tl.load(experts + rows * TOP + turn, mask=some, other=-1)
        place_of = tl.where(expert[:, None] == e[None, :], turn + 1, place_of)
    _sort_pairs(order, place_of, rows, tl.cumsum(total, axis=0) - total + before, TOP)
    if block == 0:
        _list_tiles(total, tiles, num_tiles, watch, BLOCK_E, TILE_ROWS)


def route(
    logits: Tensor, rule: RouterRule, tile_rows: int, *, watch: Tensor | None = None
) -> Routing:
    """Choose the experts of every row, and sort the work by them.

    Args:
        logits: [T, columns], T >= 1, columns next to each other; those of experts come first.
        tile_rows: pairs of one expert in a tile, at most.
        watch: [2] int64 or None: the number of experts that got any row is added to the first,
            1 to the second.
    Returns: a Routing; scores are fp32, the sums of weights too. Twin: reference.route.
    Raises: KernelInputError if rule and logits do not fit.
    """
    check_logits(logits, rule)
    num_rows, top_k = logits.shape[0], rule.top_k
    block_e = next_power_of_2(rule.num_experts)
    one_block = num_rows <= ONE_BLOCK_ROWS
    rows = ONE_BLOCK_ROWS if one_block else max(1, min(32, _BLOCK_SCORES // block_e))
    num_blocks = ceil_div(num_rows, rows)
    num_pairs = num_rows * top_k
    most = min(num_pairs, rule.num_experts + num_pairs // tile_rows)

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    routing = Routing(
        empty(num_rows, top_k),
        empty(num_rows, top_k, dtype=torch.float32),
        empty(num_pairs),
        empty(most, 3),
        empty(1),
        tile_rows,
    )
    counts = None if one_block else empty(num_blocks, block_e)
    lists = (counts, routing.order, routing.tiles, routing.num_tiles, watch, num_rows)
    layout = {
        "ROWS": rows,
        "TOP": top_k,
        "BLOCK_E": block_e,
        "TILE_ROWS": tile_rows,
        "num_warps": 4 if rows * block_e <= _BLOCK_SCORES else 8,
        **dependent_launch(logits.device),
    }
    _choose_kernel[(num_blocks,)](
        logits,
        routing.experts,
        routing.weights,
        *lists,
        logits.stride(0),
        rule.num_experts,
        BLOCK_TOP=next_power_of_2(top_k),
        ONE_BLOCK=one_block,
        RENORMALISE=rule.renormalise,
        BY_LOGITS=rule.by_logits,
        UNIFORM=rule.is_uniform,
        **layout,
    )
    if not one_block:
        _place_kernel[(num_blocks,)](routing.experts, *lists, num_blocks, **layout)
    return routing
