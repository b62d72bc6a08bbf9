"""The experts of a lone row: matrix times vector, each weight read once, without a work list.

Every program of the first launch finds out itself which expert it serves: that takes less than a
launch of its own would.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
# mypy: disable-error-code="assignment"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.activation import KINDS, gate
from tokenbus.kernels.experts.combine import NOTHING, Beside, add_shared
from tokenbus.kernels.experts.scores import NO_KEY, RouterRule, check_logits, expert_of, scores_of
from tokenbus.kernels.experts.table import RowTuning, down_row_tuning, up_row_tuning
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


@dataclass(frozen=True, slots=True)
class LoneRow:
    """What the gates of a lone row's experts let through.

    acted: [top_k, I]; experts: [top_k] int32; shares: [top_k] float32, their softmax.
    """

    acted: Tensor
    experts: Tensor
    shares: Tensor


@triton.jit
def _expert_at(logits, place, E, BLOCK_E: tl.constexpr, BY_LOGITS: tl.constexpr,
               UNIFORM: tl.constexpr):  # fmt: skip
    """Return the expert at a place of the row's choice, and its share."""
    first = tl.arange(0, 1)
    share, key = scores_of(logits, first, first == 0, 0, E, BLOCK_E, BY_LOGITS, UNIFORM)
    best = tl.max(key, axis=1, keep_dims=True)
    for _ in range(place):
        key = tl.where(key == best, NO_KEY, key)
        best = tl.max(key, axis=1, keep_dims=True)
    expert = expert_of(tl.max(tl.max(best, axis=1), axis=0))
    found = tl.sum(tl.where(key == best, share, 0.0), axis=1)
    return expert, tl.sum(found, axis=0)


@triton.jit
def _load_rows(weight, rows, live, k, in_k, K: tl.constexpr):
    """Load [rows, k] of a weight, which nothing reads again."""
    mask = live[:, None] & in_k[None, :]
    place = weight + rows[:, None] * K + k[None, :]
    return tl.load(place, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)


@triton.jit
def _up_kernel(
    x, logits, weight, norm_weight, acted, experts, shares, watch, N, E, eps, K: tl.constexpr,
    BLOCK_E: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr, BY_LOGITS: tl.constexpr,
    UNIFORM: tl.constexpr, TOP: tl.constexpr, ACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute ROWS gated outputs of one expert; the norm's scale comes behind the sums."""
    release_successor(PDL)
    blocks = tl.cdiv(N, ROWS)
    place = tl.program_id(0) // blocks
    rows = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    live = rows < N
    offs = tl.arange(0, BLOCK_K)
    BLOCKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    wait_for_inputs(PDL)
    expert, share = _expert_at(logits, place, E, BLOCK_E, BY_LOGITS, UNIFORM)
    if tl.program_id(0) % blocks == 0:
        tl.store(experts + place, expert.to(tl.int32))
        tl.store(shares + place, share)
        if watch is not None:  # noqa: SIM102 # known when it is compiled, the place is not
            if place == 0:
                tl.atomic_add(watch, tl.full([], TOP, tl.int64))
                tl.atomic_add(watch + 1, tl.full([], 1, tl.int64))
    gates = expert * 2 * N + rows
    acc = tl.zeros([ROWS, BLOCK_K], tl.float32)
    acc_up = acc
    squares = tl.zeros([BLOCK_K], tl.float32)
    for block in tl.static_range(BLOCKS):
        k = block * BLOCK_K + offs
        in_k = tl.full([BLOCK_K], True, tl.int1) if (block + 1) * BLOCK_K <= K else k < K
        w = _load_rows(weight, gates, live, k, in_k, K)
        w_up = _load_rows(weight, gates + N, live, k, in_k, K)
        value = tl.load(x + k, mask=in_k, other=0.0).to(tl.float32)
        if norm_weight is not None:
            squares += value * value
            value *= tl.load(norm_weight + k, mask=in_k, other=0.0).to(tl.float32)
        acc += w * value[None, :]
        acc_up += w_up * value[None, :]
    y, up = tl.sum(acc, axis=1), tl.sum(acc_up, axis=1)
    if norm_weight is not None:
        norm = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
        y *= norm
        up *= norm
    y = gate(y, ACT) * up
    tl.store(acted + place * N + rows, y.to(acted.dtype.element_ty), mask=live)


@triton.jit
def _down_kernel(
    acted, experts, shares, weight, shared, gate_logits, residual, out, N, K: tl.constexpr,
    TOP: tl.constexpr, BLOCK_TOP: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
    RENORMALISE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute ROWS outputs, summed over all experts of the row."""
    release_successor(PDL)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = rows < N
    offs = tl.arange(0, BLOCK_K)
    places = tl.arange(0, BLOCK_TOP)
    BLOCKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    wait_for_inputs(PDL)
    weights = tl.load(shares + places, mask=places < TOP, other=0.0)
    if RENORMALISE:
        weights /= tl.sum(weights, axis=0)
    acc = tl.zeros([ROWS, BLOCK_K], tl.float32)
    for turn in tl.static_range(TOP):
        top = tl.load(experts + turn).to(tl.int64) * N
        factor = tl.sum(tl.where(places == turn, weights, 0.0), axis=0)
        for block in tl.static_range(BLOCKS):
            k = block * BLOCK_K + offs
            in_k = tl.full([BLOCK_K], True, tl.int1) if (block + 1) * BLOCK_K <= K else k < K
            w = _load_rows(weight, top + rows, live, k, in_k, K)
            value = tl.load(acted + turn * K + k, mask=in_k, other=0.0).to(tl.float32)
            acc += w * (value * factor)[None, :]
    y = tl.sum(acc, axis=1)
    y = add_shared(y, shared, gate_logits, 0, 0, rows, live)
    if residual is not None:
        y += tl.load(residual + rows, mask=live, other=0.0)
        tl.store(residual + rows, y, mask=live)
    tl.store(out + rows, y.to(out.dtype.element_ty), mask=live)


def lone_row_up(
    x: Tensor,
    logits: Tensor,
    gate_up: Tensor,
    inner: int,
    rule: RouterRule,
    act: ActivationKind,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    watch: Tensor | None = None,
    tuning: RowTuning | None = None,
) -> LoneRow:
    """Choose the experts of one row and multiply it, or rms_norm(x), by their gates.

    Args:
        x: [1, H], contiguous; norm_weight: [H]. logits: [1, columns], those of experts first.
        gate_up: [E * 2 I, H], contiguous, dtype of x: of each expert first the I gates, then what
            they gate. inner: I.
        watch: [2] int64 or None, see `route`.
    Returns: a LoneRow; sums, norm and activation in fp32. Twins: reference.route, reference.mix.
    Raises: KernelInputError on other shapes or an unknown activation.
    """
    width = x.shape[1]
    require(x.shape[0] == logits.shape[0] == 1, f"{x.shape[0]} rows, {logits.shape[0]} logits")
    require(act in KINDS, f"unknown activation {act!r}, have {KINDS}")
    require(gate_up.dtype == x.dtype, f"x is {x.dtype}, weight is {gate_up.dtype}")
    wanted = (rule.num_experts * 2 * inner, width)
    require(gate_up.shape == wanted, f"the weight is {tuple(gate_up.shape)}, not {wanted}")
    check_logits(logits, rule)
    require_contiguous(x=x, gate_up=gate_up, norm=norm_weight)
    tuning = tuning or up_row_tuning(width)
    row = LoneRow(
        x.new_empty(rule.top_k, inner),
        torch.empty(rule.top_k, dtype=torch.int32, device=x.device),
        torch.empty(rule.top_k, dtype=torch.float32, device=x.device),
    )
    _up_kernel[(rule.top_k * ceil_div(inner, tuning.block_n),)](
        x,
        logits,
        gate_up,
        norm_weight,
        row.acted,
        row.experts,
        row.shares,
        watch,
        inner,
        rule.num_experts,
        eps,
        K=width,
        BLOCK_E=next_power_of_2(rule.num_experts),
        ROWS=tuning.block_n,
        BLOCK_K=tuning.block_k,
        BY_LOGITS=rule.by_logits,
        UNIFORM=rule.is_uniform,
        TOP=rule.top_k,
        ACT=act,
        num_warps=tuning.num_warps,
        **dependent_launch(x.device),
    )
    return row


def lone_row_down(
    row: LoneRow,
    down: Tensor,
    width: int,
    rule: RouterRule,
    beside: Beside = NOTHING,
    *,
    tuning: RowTuning | None = None,
) -> Tensor:
    """Multiply what the gates let through by the experts' last weights and sum it, weighted.

    Args:
        row: what `lone_row_up` returned. down: [E * H, I], contiguous. width: H.
        beside: what is added.
    Returns: [1, H], dtype of the weight; sums in fp32. Twin: reference.mix.
    Raises: KernelInputError on other shapes.
    """
    inner = row.acted.shape[1]
    wanted = (rule.num_experts * width, inner)
    require(down.shape == wanted, f"the weight is {tuple(down.shape)}, not {wanted}")
    require(down.dtype == row.acted.dtype, f"the weight is {down.dtype}")
    require_contiguous(down=down)
    beside.check(1, width)
    tuning = tuning or down_row_tuning(inner)
    out = down.new_empty(1, width)
    _down_kernel[(ceil_div(width, tuning.block_n),)](
        row.acted,
        row.experts,
        row.shares,
        down,
        beside.shared,
        beside.gate_logits,
        beside.residual,
        out,
        width,
        K=inner,
        TOP=rule.top_k,
        BLOCK_TOP=next_power_of_2(rule.top_k),
        ROWS=tuning.block_n,
        BLOCK_K=tuning.block_k,
        RENORMALISE=rule.renormalise,
        num_warps=tuning.num_warps,
        **dependent_launch(down.device),
    )
    return out
