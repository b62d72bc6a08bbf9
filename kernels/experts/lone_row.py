"""The experts of a lone row: matrix times vector, each weight read once, without a work list."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
# mypy: disable-error-code="assignment,misc,var-annotated"
from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from tokenbus.kernels.activation import KINDS, gate
from tokenbus.kernels.experts.combine import NOTHING, Beside, add_shared
from tokenbus.kernels.experts.fp8_stack import Fp8Stack
from tokenbus.kernels.experts.table import RowTuning, down_row_tuning, up_row_tuning
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    release_successor,
    require,
    require_contiguous,
    wait_for_inputs,
)
from tokenbus.kernels.quantize import GROUP

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.activation import ActivationKind
    from tokenbus.kernels.experts.routing import Chosen

    _Parts = tuple[Tensor, Tensor | None, int]

_GROUP = tl.constexpr(GROUP)


@triton.jit
def _load_rows(weight, rows, live, k, in_k, K: tl.constexpr):
    """Load [rows, k] of a weight, which nothing reads again."""
    mask = live[:, None] & in_k[None, :]
    # As many columns a thread as rows of two bytes get: x then needs no exchange between threads.
    place = tl.max_contiguous(weight + rows[:, None] * K + k[None, :], [1, 8])
    return tl.load(place, mask=mask, other=0.0, eviction_policy="evict_first")


@triton.jit
def _load_scales(scales, rows, live, block, K: tl.constexpr, BLOCK_K: tl.constexpr,
                 BLOCK_OUT: tl.constexpr):  # fmt: skip
    """Load what products of rows and a block of columns are scaled by, [rows, groups or 1]."""
    GROUPS: tl.constexpr = (K + _GROUP - 1) // _GROUP
    if scales is None:
        found = tl.full([1, 1], 1.0, tl.float32)
    elif BLOCK_OUT == 0:
        found = tl.load(scales + rows, mask=live, other=0.0)[:, None]
    else:
        group = block * (BLOCK_K // _GROUP) + tl.arange(0, BLOCK_K // _GROUP)
        place = scales + (rows // BLOCK_OUT)[:, None] * GROUPS + group[None, :]
        found = tl.load(place, mask=live[:, None] & (group < GROUPS)[None, :], other=0.0)
    return found


@triton.jit
def _scaled(product, scale, ROWS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Sum [rows, BLOCK_K] products by groups of columns and scale them, [rows, groups]."""
    return tl.sum(tl.reshape(product, [ROWS, BLOCK_K // _GROUP, _GROUP]), axis=2) * scale


@triton.jit
def _up_kernel(
    x, experts, weight, scales, watch, acted, N, K: tl.constexpr, TOP: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_OUT: tl.constexpr, ACT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Compute ROWS gated outputs of one expert.

    The next kernel is let go behind the wait: from then on it may read what was chosen.
    """
    blocks = tl.cdiv(N, ROWS)
    place = tl.program_id(0) // blocks
    rows = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    live = rows < N
    offs = tl.arange(0, BLOCK_K)
    BLOCKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    # Scales of outputs come behind the sums.
    BY_BLOCK: tl.constexpr = BLOCK_OUT != 0
    wait_for_inputs(PDL)
    release_successor(PDL)
    gates = tl.load(experts + place).to(tl.int64) * 2 * N + rows
    acc = tl.zeros([ROWS, BLOCK_K // _GROUP if BY_BLOCK else BLOCK_K], tl.float32)
    acc_up = acc
    for block in tl.static_range(BLOCKS):
        k = block * BLOCK_K + offs
        in_k = tl.full([BLOCK_K], True, tl.int1) if (block + 1) * BLOCK_K <= K else k < K
        w = _load_rows(weight, gates, live, k, in_k, K)
        w_up = _load_rows(weight, gates + N, live, k, in_k, K)
        value = tl.load(x + k, mask=in_k, other=0.0).to(tl.float32)[None, :]
        if BY_BLOCK:
            scale = _load_scales(scales, gates, live, block, K, BLOCK_K, BLOCK_OUT)
            scale_up = _load_scales(scales, gates + N, live, block, K, BLOCK_K, BLOCK_OUT)
            acc += _scaled(w.to(tl.float32) * value, scale, ROWS, BLOCK_K)
            acc_up += _scaled(w_up.to(tl.float32) * value, scale_up, ROWS, BLOCK_K)
        else:
            acc += w.to(tl.float32) * value
            acc_up += w_up.to(tl.float32) * value
    y, up = tl.sum(acc, axis=1), tl.sum(acc_up, axis=1)
    if scales is not None and not BY_BLOCK:
        y *= tl.load(scales + gates, mask=live, other=0.0)
        up *= tl.load(scales + gates + N, mask=live, other=0.0)
    y = gate(y, ACT) * up
    tl.store(acted + place * N + rows, y.to(acted.dtype.element_ty), mask=live)
    if watch is not None and tl.program_id(0) == 0:
        tl.atomic_add(watch, tl.full([], TOP, tl.int64))
        tl.atomic_add(watch + 1, tl.full([], 1, tl.int64))


@triton.jit
def _load_piece(weight, scales, experts, step, rows, live, N, K: tl.constexpr,
                BLOCK_K: tl.constexpr, BLOCK_OUT: tl.constexpr):  # fmt: skip
    """Ask for a block of columns of some outputs; blocks of the first expert come first."""
    BLOCKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    block = step % BLOCKS
    k = block * BLOCK_K + tl.arange(0, BLOCK_K)
    in_k = tl.full([BLOCK_K], True, tl.int1) if K % BLOCK_K == 0 else k < K
    own = tl.load(experts + step // BLOCKS).to(tl.int64) * N + rows
    return (
        _load_rows(weight, own, live, k, in_k, K),
        _load_scales(scales, own, live, block, K, BLOCK_K, BLOCK_OUT),
    )


@triton.jit
def _down_kernel(
    acted, experts, weights, weight, scales, shared, gate_logits, residual, out, N, K: tl.constexpr,
    TOP: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_OUT: tl.constexpr,
    AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute ROWS outputs, summed over all experts of the row.

    Which experts these are was known before the kernel before this one let it go, so AHEAD pieces
    of their weights are on their way before it waits for what it multiplies them by.
    """
    release_successor(PDL)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = rows < N
    BLOCKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    coming = ()
    for step in tl.static_range(min(AHEAD, TOP * BLOCKS)):
        coming += (
            _load_piece(weight, scales, experts, step, rows, live, N, K, BLOCK_K, BLOCK_OUT),
        )
    # Scales of outputs come behind the sum over an expert, those of blocks behind each product.
    BY_OUTPUT: tl.constexpr = scales is not None and BLOCK_OUT == 0
    zeros = tl.zeros([ROWS, BLOCK_K // _GROUP if BLOCK_OUT else BLOCK_K], tl.float32)
    acc = zeros
    of_expert = zeros
    wait_for_inputs(PDL)
    for step in tl.static_range(TOP * BLOCKS):
        k = (step % BLOCKS) * BLOCK_K + tl.arange(0, BLOCK_K)
        place = step // BLOCKS
        value = tl.load(acted + place * K + k, mask=k < K, other=0.0).to(tl.float32)
        share = tl.load(weights + place)
        w, scale = coming[0]
        coming = coming[1:]
        if step + AHEAD < TOP * BLOCKS:
            coming += (
                _load_piece(weight, scales, experts, step + AHEAD, rows, live, N, K, BLOCK_K,
                            BLOCK_OUT),
            )  # fmt: skip
        if BY_OUTPUT:
            of_expert += w.to(tl.float32) * value[None, :]
            if (step + 1) % BLOCKS == 0:
                acc += of_expert * (share * scale)
                of_expert = zeros
        else:
            product = w.to(tl.float32) * (share * value)[None, :]
            acc += product if BLOCK_OUT == 0 else _scaled(product, scale, ROWS, BLOCK_K)
    y = tl.sum(acc, axis=1)
    y = add_shared(y, shared, gate_logits, 0, 0, rows, live)
    if residual is not None:
        y += tl.load(residual + rows, mask=live, other=0.0)
        tl.store(residual + rows, y, mask=live)
    tl.store(out + rows, y.to(out.dtype.element_ty), mask=live)


def _plain_parts(stack: Tensor | Fp8Stack, outputs: int, inputs: int, x: Tensor) -> _Parts:
    """Return numbers, scales and outputs of a block; refuse experts that do not fit x."""
    if isinstance(stack, Fp8Stack):
        stack.check_product(inputs, outputs)
        return stack.values, stack.scales, stack.block_outputs
    require(stack.shape[1] == inputs, f"x is {inputs} wide, weight {stack.shape[1]}")
    require(stack.shape[0] % outputs == 0, f"{stack.shape[0]} outputs are no experts of {outputs}")
    require(stack.dtype == x.dtype, f"x is {x.dtype}, weight is {stack.dtype}")
    require_contiguous(weight=stack)
    return stack, None, 0


def lone_row_up(
    x: Tensor,
    chosen: Chosen,
    gate_up: Tensor | Fp8Stack,
    inner: int,
    act: ActivationKind,
    *,
    watch: Tensor | None = None,
    tuning: RowTuning | None = None,
) -> Tensor:
    """Multiply one row by the gates of its experts and what these gate.

    Args:
        x: [1, H], contiguous. chosen: of the row.
        gate_up: [E * 2 I, H], contiguous, dtype of x or FP8: of each expert first the I gates, then
            what they gate. inner: I. watch: as of `FewRows`.
    Returns: [top_k, I], dtype of x; sums and activation in fp32, x is not rounded to FP8.
        Twin: reference.mix.
    Raises: KernelInputError on other shapes or an unknown activation.
    """
    width, top_k = x.shape[1], chosen.experts.shape[1]
    require(x.shape[0] == 1, f"{x.shape[0]} rows")
    require(chosen.experts.shape[0] == 1, f"the experts of {chosen.experts.shape[0]} rows")
    require(act in KINDS, f"unknown activation {act!r}, have {KINDS}")
    values, scales, block_outputs = _plain_parts(gate_up, 2 * inner, width, x)
    require_contiguous(x=x)
    tuning = tuning or up_row_tuning(width, rounded=scales is not None)
    acted = x.new_empty(top_k, inner)
    _up_kernel[(top_k * ceil_div(inner, tuning.block_n),)](
        x,
        chosen.experts,
        values,
        scales,
        watch,
        acted,
        inner,
        K=width,
        TOP=top_k,
        ROWS=tuning.block_n,
        BLOCK_K=tuning.block_k,
        BLOCK_OUT=block_outputs,
        ACT=act,
        num_warps=tuning.num_warps,
        **dependent_launch(x.device),
    )
    return acted


def lone_row_down(
    acted: Tensor,
    chosen: Chosen,
    down: Tensor | Fp8Stack,
    width: int,
    beside: Beside = NOTHING,
    *,
    tuning: RowTuning | None = None,
) -> Tensor:
    """Multiply what the gates let through by the experts' last weights and sum it, weighted.

    On a GPU `lone_row_up` is what was launched last: its experts are read while it still runs.

    Args:
        acted: [top_k, I], what `lone_row_up` returned. chosen: of the row.
        down: [E * H, I], contiguous, dtype of acted or FP8. width: H. beside: what is added.
    Returns: [1, H], dtype of acted; sums in fp32. Twin: reference.mix.
    Raises: KernelInputError on other shapes.
    """
    top_k, inner = acted.shape
    require(chosen.experts.shape == (1, top_k), f"{top_k} rows of other experts")
    values, scales, block_outputs = _plain_parts(down, width, inner, acted)
    require_contiguous(acted=acted)
    beside.check(1, width)
    tuning = tuning or down_row_tuning(inner, rounded=scales is not None)
    out = acted.new_empty(1, width)
    _down_kernel[(ceil_div(width, tuning.block_n),)](
        acted,
        chosen.experts,
        chosen.weights,
        values,
        scales,
        beside.shared,
        beside.gate_logits,
        beside.residual,
        out,
        width,
        K=inner,
        TOP=top_k,
        ROWS=tuning.block_n,
        BLOCK_K=tuning.block_k,
        BLOCK_OUT=block_outputs,
        AHEAD=tuning.ahead,
        num_warps=tuning.num_warps,
        **dependent_launch(acted.device),
    )
    return out
