"""The router of few rows: norm and logits in a launch, and the choice in another.

Programs share out rows and experts. The last one of a row could choose for it, but would wait for
the others' writes and ask for them again, which takes longer than a launch that is there already.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.experts.routing import Chosen, launch_choice
from tokenbus.kernels.experts.table import RouterTuning, router_tuning
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    next_power_of_2,
    release_successor,
    require,
    require_contiguous,
    wait_for_inputs,
)
from tokenbus.kernels.quantize import QuantizedRows, finite_number, scale_of

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.experts.scores import RouterRule

# Rows of which a program chooses for one, and for all of which the last one makes a list.
MAX_FEW_ROWS = 16


@dataclass(frozen=True, slots=True)
class FewRows:
    """What a router says of up to 16 rows.

    rows: [T, H], what the router saw: behind the norm if it has one. logits: [T, L], dtype of rows.
    rounded: the rows in FP8, if that was asked for. watch: [2] int64 or None: who multiplies rows
    by the experts adds the number of those that got any to the first, and 1 to the second.
    """

    rows: Tensor
    logits: Tensor
    chosen: Chosen
    num_experts: int
    rounded: QuantizedRows | None = None
    watch: Tensor | None = None

    @property
    def top_k(self) -> int:
        """Experts of a row."""
        return self.chosen.experts.shape[1]

    @property
    def tile_rows(self) -> int:
        """Rows of a tile: there is room for all in each."""
        return MAX_FEW_ROWS

    @property
    def by_expert(self) -> bool:
        """Whether each expert has a tile, or each pair, of which the first of an expert is used."""
        return self.num_experts <= self.chosen.experts.numel()

    @property
    def num_tiles(self) -> int:
        """Tiles, used or not."""
        return min(self.num_experts, self.chosen.experts.numel())


@triton.jit
def _router_kernel(
    x, norm_weight, router, normed, rounded, row_scales, logits, L, eps, K: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_L logits of a row."""
    release_successor(PDL)
    row = tl.program_id(1)
    outs = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    live = outs < L
    k = tl.arange(0, BLOCK_K)
    in_k = k < K
    w = tl.load(router + outs.to(tl.int64)[:, None] * K + k[None, :],
                mask=live[:, None] & in_k[None, :], other=0.0)  # fmt: skip
    if norm_weight is not None:
        scale = tl.load(norm_weight + k, mask=in_k, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    value = tl.load(x + row * K + k, mask=in_k, other=0.0)
    if norm_weight is not None:
        exact = value.to(tl.float32)
        exact = exact * tl.rsqrt(tl.sum(exact * exact) / K + eps) * scale
        value = exact.to(value.dtype)
    # Each program writes its part of the row.
    part = tl.cdiv(K, tl.num_programs(0))
    begin = tl.program_id(0) * part
    mine = in_k & (k >= begin) & (k < begin + part)
    if norm_weight is not None:
        tl.store(normed + row * K + k, value, mask=mine)
    if rounded is not None:
        exact = value.to(tl.float32)
        by_row = scale_of(tl.max(tl.abs(exact)))
        number = finite_number(exact / by_row).to(tl.float8e4nv)
        tl.store(rounded + row * K + k, number, mask=mine)
        tl.store(row_scales + row, by_row + tl.sum(exact - exact), mask=begin == 0)
    logit = tl.sum(w.to(tl.float32) * value.to(tl.float32)[None, :], axis=1)
    tl.store(logits + row * L + outs, logit.to(logits.dtype.element_ty), mask=live)


def route_few(
    x: Tensor,
    router: Tensor,
    rule: RouterRule,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    watch: Tensor | None = None,
    rounds: bool = False,
    tuning: RouterTuning | None = None,
) -> FewRows:
    """Choose the experts of up to 16 rows, or of rms_norm(x).

    Args:
        x: [T, H], contiguous, 1 <= T <= 16. router: [L, H], contiguous, dtype of x: a row for each
            expert, and behind them others whose logits are wanted too. norm_weight: [H].
        watch: see FewRows. rounds: return the rows in FP8 too, as `quantize_rows` would.
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
    few = FewRows(
        x if norm_weight is None else torch.empty_like(x),
        x.new_empty(num_rows, num_logits),
        Chosen.empty(num_rows, rule.top_k, x.device),
        rule.num_experts,
        QuantizedRows.empty(num_rows, width, x.device) if rounds else None,
        watch,
    )
    tuning = tuning or router_tuning(num_rows, width)
    _router_kernel[(ceil_div(num_logits, tuning.block_l), num_rows)](
        x,
        norm_weight,
        router,
        few.rows,
        None if few.rounded is None else few.rounded.values,
        None if few.rounded is None else few.rounded.scales,
        few.logits,
        num_logits,
        eps,
        K=width,
        BLOCK_L=tuning.block_l,
        BLOCK_K=next_power_of_2(width),
        num_warps=tuning.num_warps,
        **dependent_launch(x.device),
    )
    launch_choice(few.logits, few.chosen, rule)
    return few
