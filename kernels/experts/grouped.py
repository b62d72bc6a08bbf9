"""Products of many experts in one launch: pairs of a row and an expert, sorted by expert.

A program takes one tile of the work list: up to `tile_rows` pairs of one expert, and some of its
outputs. Tiles of one expert are neighbours, so what one of them reads of the weights the others
find in the L2 cache. The grid is as large as the list can get; programs of empty tiles return.
Of up to 16 rows a tile has all, and what is not the expert's stays empty: nothing is sorted.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from tokenbus.kernels.activation import KINDS, gate
from tokenbus.kernels.experts.router import FewRows
from tokenbus.kernels.experts.table import GroupTuning, down_tuning, up_tuning
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    next_power_of_2,
    release_successor,
    require,
    require_contiguous,
    wait_for_inputs,
)

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.activation import ActivationKind
    from tokenbus.kernels.experts.routing import Routing

    # What a router says of rows: sorted by expert, or as they are where they are few.
    Work = Routing | FewRows

FIELDS = tl.constexpr(3)
# Descriptors fetch rows that begin at multiples of 16 bytes.
_ROW_BYTES = 16


@triton.jit
def _load_weight(weight, row, end, start, K: tl.constexpr, BLOCK_N: tl.constexpr,
                 BLOCK_K: tl.constexpr, FETCHED: tl.constexpr):  # fmt: skip
    """Load [BLOCK_N, BLOCK_K] of a weight from `row` on, by its descriptor or by addresses.

    Rows from `end` on are the next expert's, or zeros: their products are not kept.
    """
    if FETCHED:
        w = weight.load([row, start])
    else:
        rows = row + tl.arange(0, BLOCK_N)
        k = start + tl.arange(0, BLOCK_K)
        mask = (rows < end)[:, None] & (k < K)[None, :]
        w = tl.load(weight + rows.to(tl.int64)[:, None] * K + k[None, :], mask=mask, other=0.0)
    return w


@triton.jit
def _multiply(value, w, acc, TURNED: tl.constexpr, PRECISION: tl.constexpr):
    """Add value w^T to acc, or w value^T."""
    if TURNED:
        acc = tl.dot(w, tl.trans(value), acc, input_precision=PRECISION)
    else:
        acc = tl.dot(value, tl.trans(w), acc, input_precision=PRECISION)
    return acc


@triton.jit
def load_tile(order, tiles, tile, BLOCK_M: tl.constexpr):
    """Return a tile of a sorted list: expert, which of its rows are some, their places and pairs.

    A tile of an expert under 0 is empty.
    """
    expert = tl.load(tiles + tile * FIELDS)
    first = tl.load(tiles + tile * FIELDS + 1)
    count = tl.load(tiles + tile * FIELDS + 2)
    number = tl.arange(0, BLOCK_M)
    some = number < count
    pair = tl.load(order + first + number, mask=some, other=0)
    return tl.where(count > 0, expert, -1), some, first + number, pair


@triton.jit
def load_few(experts, tile, M, TOP: tl.constexpr, BLOCK_TOP: tl.constexpr, BLOCK_M: tl.constexpr,
             BY_EXPERT: tl.constexpr):  # fmt: skip
    """Return the same of rows that all lie in one tile, whose pairs are not sorted.

    A tile is an expert's, or, if there are fewer pairs than experts, a pair's: then the first pair
    of an expert has all of its rows, and the tiles of the others are empty.
    """
    rows = tl.arange(0, BLOCK_M)
    places = tl.arange(0, BLOCK_TOP)[None, :]
    valid = (rows < M)[:, None] & (places < TOP)
    pairs = rows[:, None] * TOP + places
    found = tl.load(experts + pairs, mask=valid, other=-1)
    expert = tile if BY_EXPERT else tl.load(experts + tile)
    is_mine = valid & (found == expert)
    mine = is_mine.to(tl.int32)
    first = tl.min(tl.min(tl.where(is_mine, pairs, BLOCK_M * BLOCK_TOP), axis=1), axis=0)
    is_used = first < BLOCK_M * BLOCK_TOP if BY_EXPERT else first == tile
    pair = rows * TOP + tl.sum(mine * places, axis=1)
    return tl.where(is_used, expert, -1), tl.sum(mine, axis=1) > 0, pair, pair


@triton.jit
def count_used(watch, expert, tile):
    """Count an expert that got any row, and the launch."""
    tl.atomic_add(watch, (expert >= 0).to(tl.int64))
    tl.atomic_add(watch + 1, (tile == 0).to(tl.int64))


@triton.jit(do_not_specialize=["M"])
def _grouped_kernel(
    x, weight, order, tiles, watch, out, M, N, K: tl.constexpr, TOP: tl.constexpr,
    BLOCK_TOP: tl.constexpr, FEW: tl.constexpr, BY_EXPERT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    TURNED: tl.constexpr, FETCHED: tl.constexpr, ACT: tl.constexpr, PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Compute a tile's pairs times BLOCK_N outputs of their expert.

    With ACT: x are rows, an expert has gates and what they gate, and results lie in sorted order.
    Without: x are results of that, and what comes out lies where its pair says. FEW: order are the
    experts of M rows, see `load_few`, and results always lie where their pair says.
    """
    release_successor(PDL)
    blocks = tl.cdiv(N, BLOCK_N)
    tile = tl.program_id(0) // blocks
    col = (tl.program_id(0) % blocks) * BLOCK_N
    wait_for_inputs(PDL)
    if FEW:
        expert, some, place, pair = load_few(order, tile, M, TOP, BLOCK_TOP, BLOCK_M, BY_EXPERT)
        if watch is not None and col == 0:
            count_used(watch, expert, tile)
    else:
        expert, some, place, pair = load_tile(order, tiles, tile, BLOCK_M)
    if expert < 0:
        return
    if ACT == "none":
        source, target, top = place, pair, expert * N
    else:
        source, target, top = pair // TOP, place, expert * 2 * N
    source = x + source.to(tl.int64)[:, None] * K
    acc = tl.zeros([BLOCK_N, BLOCK_M] if TURNED else [BLOCK_M, BLOCK_N], tl.float32)
    acc_up = tl.zeros_like(acc)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K)
        value = tl.load(source + k[None, :], mask=some[:, None] & (k < K)[None, :], other=0.0)
        w = _load_weight(weight, top + col, top + N, start, K, BLOCK_N, BLOCK_K, FETCHED)
        acc = _multiply(value, w, acc, TURNED, PRECISION)
        if ACT != "none":
            w_up = _load_weight(
                weight, top + N + col, top + 2 * N, start, K, BLOCK_N, BLOCK_K, FETCHED
            )
            acc_up = _multiply(value, w_up, acc_up, TURNED, PRECISION)
    if ACT != "none":
        acc = gate(acc, ACT) * acc_up
    if TURNED:
        acc = tl.trans(acc)
    cols = col + tl.arange(0, BLOCK_N)
    mask = some[:, None] & (cols < N)[None, :]
    target = out + target.to(tl.int64)[:, None] * N + cols[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=mask)


class ListedWork(NamedTuple):
    """A work as kernels take it: what is sorted, or of few rows their experts and no tiles."""

    order: Tensor
    tiles: Tensor | None
    num_tiles: int
    by_expert: bool
    watch: Tensor | None


def listed_work(work: Work) -> ListedWork:
    """Return what kernels take of a work."""
    if isinstance(work, FewRows):
        return ListedWork(
            work.chosen.experts, None, work.num_tiles, work.by_expert, work.watch
        )  # fmt: skip
    return ListedWork(work.order, work.tiles, work.tiles.shape[0], False, None)


def num_pairs(work: Work) -> int:
    """Count the pairs of a row and an expert."""
    return work.chosen.experts.numel()


def _check(x: Tensor, weight: Tensor, num_outputs: int) -> None:
    require(weight.dim() == 2, f"the weight has {weight.dim()} dimensions")
    require(weight.shape[1] == x.shape[1], f"x is {x.shape[1]} wide, weight {weight.shape[1]}")
    require(weight.dtype == x.dtype, f"x is {x.dtype}, weight is {weight.dtype}")
    require(
        weight.shape[0] % num_outputs == 0,
        f"{weight.shape[0]} outputs are no experts of {num_outputs}",
    )
    require_contiguous(x=x, weight=weight)


def _launch(
    x: Tensor, weight: Tensor, work: Work, out: Tensor, tuning: GroupTuning, act: str
) -> Tensor:
    width_in, width_out = x.shape[1], out.shape[1]
    fetched = width_in * weight.element_size() % _ROW_BYTES == 0
    source: Any = weight
    if fetched:
        source = TensorDescriptor.from_tensor(weight, [tuning.block_n, tuning.block_k])
    listed = listed_work(work)
    grid = (listed.num_tiles * ceil_div(width_out, tuning.block_n),)
    _grouped_kernel[grid](
        x,
        source,
        listed.order,
        listed.tiles,
        None if act == "none" else listed.watch,
        out,
        work.chosen.experts.shape[0],
        width_out,
        K=width_in,
        TOP=work.top_k,
        BLOCK_TOP=next_power_of_2(work.top_k),
        FEW=listed.tiles is None,
        BY_EXPERT=listed.by_expert,
        BLOCK_M=work.tile_rows,
        BLOCK_N=tuning.block_n,
        BLOCK_K=tuning.block_k,
        STAGES=tuning.stages,
        TURNED=tuning.turned,
        FETCHED=fetched,
        ACT=act,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=tuning.num_warps,
        **dependent_launch(x.device),
    )
    return out


def experts_up(
    x: Tensor,
    gate_up: Tensor,
    inner: int,
    work: Work,
    act: ActivationKind,
    *,
    tuning: GroupTuning | None = None,
) -> Tensor:
    """Return act(gate) * up of every pair, in the order of the work.

    Args:
        x: [T, H], contiguous. gate_up: [E * 2 I, H], contiguous, dtype of x: of each expert first
            the I gates, then what they gate. inner: I.
        work: of the T rows.
    Returns: [T * top_k, I], dtype of x; sums and activation in fp32. Twin: reference.mix.
    Raises: KernelInputError on other shapes or an unknown activation.
    """
    require(act in KINDS, f"unknown activation {act!r}, have {KINDS}")
    _check(x, gate_up, 2 * inner)
    out = x.new_empty(num_pairs(work), inner)
    return _launch(x, gate_up, work, out, tuning or up_tuning(work.tile_rows), act)


def experts_down(
    x: Tensor, down: Tensor, width: int, work: Work, *, tuning: GroupTuning | None = None
) -> Tensor:
    """Return every pair's product with its expert's last weight, in the order of the pairs.

    Args:
        x: [T * top_k, I], contiguous, as `experts_up` returns it. down: [E * H, I], contiguous,
            dtype of x. width: H.
    Returns: [T * top_k, H], dtype of x, not weighted; sums in fp32. Twin: reference.mix.
    Raises: KernelInputError on other shapes.
    """
    _check(x, down, width)
    out = x.new_empty(num_pairs(work), width)
    return _launch(x, down, work, out, tuning or down_tuning(work.tile_rows), "none")
