"""The router of few rows in one launch: norm, logits, the choice, and who got any row.

Programs share out the experts, and the last of them to end chooses for all rows: no launch and no
second look at the rows between logits and choice.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.experts.routing import Chosen, choose_rows
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    next_power_of_2,
    release_successor,
    require,
    require_contiguous,
    wait_for_inputs,
)
from tokenbus.kernels.prefetch import fetch_ahead, fetchable

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.experts.scores import RouterRule

# Rows that all programs hold at once.
MAX_FEW_ROWS = 16
# Columns of 16 rows that a program holds at once, and warps that share them out.
_BLOCK_COLUMNS, _WARPS = 2048, 8
# Logits of a program, for one row and for several: the fewer, the sooner it ends.
_LONE_LOGITS, _LOGITS = 2, 4


@dataclass(frozen=True, slots=True)
class FewRows:
    """What a router says of up to 16 rows.

    rows: [T, H], what the router saw: behind the norm if it has one. logits: [T, L], dtype of rows.
    used: [min(T * top_k, E)] int32, the experts that got any row in their order, then -1.
    """

    rows: Tensor
    logits: Tensor
    chosen: Chosen
    used: Tensor

    @property
    def top_k(self) -> int:
        """Experts of a row."""
        return self.chosen.experts.shape[1]

    @property
    def tile_rows(self) -> int:
        """Rows of a tile: there is room for all in each."""
        return MAX_FEW_ROWS


@cache
def _arrivals(device: torch.device) -> Tensor:
    """Return the count of programs that ended, zero between launches."""
    return torch.zeros(1, dtype=torch.int32, device=device)


@triton.jit
def _is_last(arrivals):
    """Count this program in; say whether all others were there before, whose writes are seen."""
    tl.debug_barrier()
    is_last = tl.atomic_add(arrivals, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1
    if is_last:
        tl.debug_barrier()
        tl.store(arrivals, 0)
    return is_last


@triton.jit
def _write_choice(
    logits, experts, weights, used, watch, M, L, E, ROWS: tl.constexpr, TOP: tl.constexpr,
    BLOCK_TOP: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_USED: tl.constexpr,
    RENORMALISE: tl.constexpr, BY_LOGITS: tl.constexpr, UNIFORM: tl.constexpr,
):  # fmt: skip
    """Choose the experts of all rows, and list those that got any."""
    rows = tl.arange(0, ROWS)
    some = rows < M
    found, shares, taken = choose_rows(logits, rows, some, L, E, ROWS, TOP, BLOCK_TOP, BLOCK_E,
                                       RENORMALISE, BY_LOGITS, UNIFORM)  # fmt: skip
    places = tl.arange(0, BLOCK_TOP)[None, :]
    mask = some[:, None] & (places < TOP)
    out = rows[:, None] * TOP + places
    tl.store(experts + out, found, mask=mask)
    tl.store(weights + out, shares, mask=mask)
    got = tl.max((taken & some[:, None]).to(tl.int32), axis=0)
    place = tl.cumsum(got, axis=0) - got
    count = tl.sum(got, axis=0)
    tl.store(used + place, tl.arange(0, BLOCK_E), mask=got > 0)
    rest = tl.arange(0, BLOCK_USED)
    tl.store(used + rest, tl.full([BLOCK_USED], -1, tl.int32),
             mask=(rest >= count) & (rest < tl.minimum(M * TOP, E)))  # fmt: skip
    if watch is not None:
        tl.atomic_add(watch, count.to(tl.int64))
        tl.atomic_add(watch + 1, tl.full([], 1, tl.int64))


@triton.jit
def _lone_router_kernel(
    x, norm_weight, router, normed, logits, experts, weights, used, watch, arrivals, ahead,
    ahead_bytes, L, E, eps, K: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr,
    TOP: tl.constexpr, BLOCK_TOP: tl.constexpr, BLOCK_E: tl.constexpr, RENORMALISE: tl.constexpr,
    BY_LOGITS: tl.constexpr, UNIFORM: tl.constexpr, LANES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_L logits of one row; the last program chooses."""
    release_successor(PDL)
    outs = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    live = outs < L
    k = tl.arange(0, BLOCK_K)
    in_k = k < K
    w = tl.load(router + outs.to(tl.int64)[:, None] * K + k[None, :],
                mask=live[:, None] & in_k[None, :], other=0.0)  # fmt: skip
    if norm_weight is not None:
        scale = tl.load(norm_weight + k, mask=in_k, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    if ahead is not None:
        fetch_ahead(ahead, ahead_bytes, tl.program_id(0), tl.num_programs(0), LANES)
    value = tl.load(x + k, mask=in_k, other=0.0)
    if norm_weight is not None:
        exact = value.to(tl.float32)
        exact = exact * tl.rsqrt(tl.sum(exact * exact) / K + eps) * scale
        value = exact.to(value.dtype)
        # Each program writes its part of the row.
        part = tl.cdiv(K, tl.num_programs(0))
        begin = tl.program_id(0) * part
        tl.store(normed + k, value, mask=in_k & (k >= begin) & (k < begin + part))
    logit = tl.sum(w.to(tl.float32) * value.to(tl.float32)[None, :], axis=1)
    tl.store(logits + outs, logit.to(logits.dtype.element_ty), mask=live)
    if _is_last(arrivals):
        _write_choice(logits, experts, weights, used, watch, 1, L, E, 1, TOP, BLOCK_TOP, BLOCK_E,
                      BLOCK_TOP, RENORMALISE, BY_LOGITS, UNIFORM)  # fmt: skip


@triton.jit
def _load_columns(base, rows, live, k, in_k, K: tl.constexpr):
    """Load [SLICES, rows, columns]: each slice of columns is another warp's."""
    mask = live[None, :, None] & in_k[:, None, :]
    place = base + rows.to(tl.int64)[None, :, None] * K + k[:, None, :]
    return tl.load(place, mask=mask, other=0.0)


@triton.jit
def _squares(value):
    """Sum the squares of rows, [SLICES, rows, columns] -> [rows]."""
    exact = value.to(tl.float32)
    return tl.sum(tl.sum(exact * exact, axis=2), axis=0)


@triton.jit(do_not_specialize=["M"])
def _few_router_kernel(
    x, norm_weight, router, normed, logits, experts, weights, used, watch, arrivals, ahead,
    ahead_bytes, M, L, E, eps, K: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, SLICES: tl.constexpr, TOP: tl.constexpr,
    BLOCK_TOP: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_USED: tl.constexpr,
    RENORMALISE: tl.constexpr, BY_LOGITS: tl.constexpr, UNIFORM: tl.constexpr,
    PRECISION: tl.constexpr, LANES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute WIDTH logits of up to ROWS rows; the last program chooses for all of them."""
    release_successor(PDL)
    BLOCKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    PART: tl.constexpr = BLOCK_K // SLICES
    first = tl.program_id(0) * WIDTH
    outs = first + tl.arange(0, BLOCK_L)
    live = outs < tl.minimum(first + WIDTH, L)
    rows = tl.arange(0, ROWS)
    some = rows < M
    columns = tl.arange(0, SLICES)[:, None] * PART + tl.arange(0, PART)[None, :]
    own = tl.cdiv(K, tl.num_programs(0))
    begin = tl.program_id(0) * own
    acc = tl.zeros([SLICES, ROWS, BLOCK_L], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    w = _load_columns(router, outs, live, columns, columns < K, K)
    wait_for_inputs(PDL)
    if ahead is not None:
        fetch_ahead(ahead, ahead_bytes, tl.program_id(0), tl.num_programs(0), LANES)
    value = _load_columns(x, rows, some, columns, columns < K, K)
    if norm_weight is not None:
        squares += _squares(value)
        for block in tl.static_range(1, BLOCKS):
            k = block * BLOCK_K + columns
            squares += _squares(_load_columns(x, rows, some, k, k < K, K))
    norm = tl.rsqrt(squares / K + eps)[None, :, None]
    for block in tl.static_range(BLOCKS):
        k = block * BLOCK_K + columns
        in_k = k < K
        if block > 0:
            w = _load_columns(router, outs, live, k, in_k, K)
            value = _load_columns(x, rows, some, k, in_k, K)
        if norm_weight is not None:
            scale = tl.load(norm_weight + k, mask=in_k, other=0.0).to(tl.float32)
            value = (value.to(tl.float32) * norm * scale[:, None, :]).to(value.dtype)
            # Each program writes its part of the rows.
            mine = in_k & (k >= begin) & (k < begin + own)
            tl.store(normed + rows[None, :, None] * K + k[:, None, :], value,
                     mask=some[None, :, None] & mine[:, None, :])  # fmt: skip
        acc = tl.dot(value, tl.permute(w, (0, 2, 1)), acc, input_precision=PRECISION)
    logit = tl.sum(acc, axis=0).to(logits.dtype.element_ty)
    tl.store(logits + rows[:, None] * L + outs[None, :], logit,
             mask=some[:, None] & live[None, :])  # fmt: skip
    if _is_last(arrivals):
        _write_choice(logits, experts, weights, used, watch, M, L, E, ROWS, TOP, BLOCK_TOP, BLOCK_E,
                      BLOCK_USED, RENORMALISE, BY_LOGITS, UNIFORM)  # fmt: skip


def route_few(
    x: Tensor,
    router: Tensor,
    rule: RouterRule,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    watch: Tensor | None = None,
    ahead: Tensor | None = None,
) -> FewRows:
    """Choose the experts of up to 16 rows, or of rms_norm(x).

    Args:
        x: [T, H], contiguous, 1 <= T <= 16. router: [L, H], contiguous, dtype of x: a row for each
            expert, and behind them others whose logits are wanted too. norm_weight: [H].
        watch: [2] int64 or None: the number of experts that got any row is added to the first, 1 to
            the second. ahead: a weight that is read soon: on a GPU it is fetched into the L2 cache.
    Returns: FewRows; what was normed and the logits are rounded to the dtype of x, scores and
        weights are fp32. Twins: reference.rms_norm, reference.route.
    Raises: KernelInputError if rule, rows and router do not fit.
    """
    (num_rows, width), num_logits = x.shape, router.shape[0]
    require(1 <= num_rows <= MAX_FEW_ROWS, f"{num_rows} rows, this takes 1 to {MAX_FEW_ROWS}")
    require(router.shape[1] == width, f"x is {width} wide, the router {router.shape[1]}")
    require(router.dtype == x.dtype, f"x is {x.dtype}, the router {router.dtype}")
    require(
        1 <= rule.top_k <= rule.num_experts <= num_logits,
        f"{rule.top_k} of {rule.num_experts} experts, from {num_logits} logits",
    )
    require_contiguous(x=x, router=router, norm=norm_weight)
    device = x.device
    num_used = min(num_rows * rule.top_k, rule.num_experts)
    few = FewRows(
        x if norm_weight is None else torch.empty_like(x),
        x.new_empty(num_rows, num_logits),
        Chosen.empty(num_rows, rule.top_k, device),
        torch.empty(num_used, dtype=torch.int32, device=device),
    )
    launched = dependent_launch(device)
    next_weight, next_bytes = fetchable(ahead, launched["PDL"])
    tensors = (
        x, norm_weight, router, few.rows, few.logits, few.chosen.experts, few.chosen.weights,
        few.used, watch, _arrivals(device), next_weight, next_bytes,
    )  # fmt: skip
    options = rule.options() | launched
    if num_rows == 1:
        warps = 4
        _lone_router_kernel[(ceil_div(num_logits, _LONE_LOGITS),)](
            *tensors, num_logits, rule.num_experts, eps, K=width, BLOCK_L=_LONE_LOGITS,
            BLOCK_K=next_power_of_2(width), LANES=warps * 32, num_warps=warps, **options,
        )  # fmt: skip
        return few
    _few_router_kernel[(ceil_div(num_logits, _LOGITS),)](
        *tensors, num_rows, num_logits, rule.num_experts, eps, K=width, ROWS=MAX_FEW_ROWS,
        WIDTH=_LOGITS, BLOCK_L=16, BLOCK_K=min(_BLOCK_COLUMNS, next_power_of_2(max(width, 128))),
        SLICES=_WARPS, BLOCK_USED=next_power_of_2(MAX_FEW_ROWS * rule.top_k),
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32", LANES=_WARPS * 32,
        num_warps=_WARPS, **options,
    )  # fmt: skip
    return few
