"""Products of many experts in FP8: rows of e4m3 times weights of e4m3, sorted by expert.

Work lists are those of `grouped`. What the gates let through is rounded by the kernel that makes
it, with a scale per 128 columns, so that nothing in between is launched.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from tokenbus.kernels.activation import KINDS, gate
from tokenbus.kernels.experts.grouped import (
    count_used,
    listed_work,
    load_few,
    load_tile,
    num_pairs,
)
from tokenbus.kernels.experts.table import GroupTuning, fp8_down_tuning, fp8_up_tuning
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    next_power_of_2,
    release_successor,
    require,
    require_contiguous,
    wait_for_inputs,
)
from tokenbus.kernels.quantize import GROUP, QuantizedRows, finite_number, scale_of

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.activation import ActivationKind
    from tokenbus.kernels.experts.fp8_stack import Fp8Stack
    from tokenbus.kernels.experts.grouped import Work

_GROUP = tl.constexpr(GROUP)


@triton.jit
def _product(weight, row, start, value, TURNED: tl.constexpr):
    """Multiply BLOCK_N rows of a weight and a tile's values: [outputs, pairs], or turned round."""
    w = weight.load([row, start])
    return tl.dot(w, tl.trans(value)) if TURNED else tl.dot(value, tl.trans(w))


@triton.jit
def _add_product(acc, weight, row, start, value, TURNED: tl.constexpr):
    """Add the same to acc."""
    w = weight.load([row, start])
    return tl.dot(w, tl.trans(value), acc) if TURNED else tl.dot(value, tl.trans(w), acc)


@triton.jit
def _spread(by_output, by_pair, TURNED: tl.constexpr):
    """Multiply a number per output and one per pair to a tile of them."""
    return (by_output[:, None] * by_pair[None, :] if TURNED
            else by_pair[:, None] * by_output[None, :])  # fmt: skip


@triton.jit
def _output_scales(scales, rows, live, step, K: tl.constexpr, BLOCK_OUT: tl.constexpr):
    """Load the scales of a step's outputs, of blocks if there are any."""
    if BLOCK_OUT == 0:
        return tl.load(scales + rows, mask=live, other=0.0)
    GROUPS: tl.constexpr = (K + _GROUP - 1) // _GROUP
    return tl.load(scales + rows // BLOCK_OUT * GROUPS + step, mask=live, other=0.0)


@triton.jit
def _store_rounded(acted, out, out_scales, target, some, cols, live, group, N, GROUPS):
    """Round each pair's numbers, [pairs, 128], to a scale of their own.

    The scale of what holds NaN is NaN, and no number is.
    """
    scale = scale_of(tl.max(tl.abs(acted), axis=1))
    number = finite_number(acted / scale[:, None])
    place = target.to(tl.int64)[:, None] * N + cols[None, :]
    tl.store(out + place, number.to(tl.float8e4nv), mask=some[:, None] & live[None, :])
    scale += tl.sum(acted - acted, axis=1)
    tl.store(out_scales + target * GROUPS + group, scale, mask=some)


@triton.jit(do_not_specialize=["M"])
def _fp8_grouped_kernel(
    x, x_scales, row_stride, group_stride, weight, scales, order, tiles, watch, out, out_scales, M,
    N, K: tl.constexpr, TOP: tl.constexpr, BLOCK_TOP: tl.constexpr, FEW: tl.constexpr,
    BY_EXPERT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr, TURNED: tl.constexpr, BLOCK_OUT: tl.constexpr, GROUPED: tl.constexpr,
    ACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute a tile's pairs times BLOCK_N outputs of their expert; see `_grouped_kernel`.

    GROUPED: x has a scale per 128 columns, and a step has as many, whose product is scaled by
    itself. With ACT a program has 128 outputs, which get a scale per pair.
    """
    release_successor(PDL)
    blocks = tl.cdiv(N, BLOCK_N)
    tile = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    wait_for_inputs(PDL)
    if FEW:
        expert, some, place, pair = load_few(order, tile, M, TOP, BLOCK_TOP, BLOCK_M, BY_EXPERT)
        if watch is not None and block == 0:
            count_used(watch, expert, tile)
    else:
        expert, some, place, pair = load_tile(order, tiles, tile, BLOCK_M)
    if expert < 0:
        return
    if ACT == "none":
        source, target, top = place, pair, expert * N
    else:
        source, target, top = pair // TOP, place, expert * 2 * N
    col = block * BLOCK_N
    cols = col + tl.arange(0, BLOCK_N)
    live = cols < N
    rows = top + cols
    lines = x + source.to(tl.int64)[:, None] * K
    acc = tl.zeros([BLOCK_N, BLOCK_M] if TURNED else [BLOCK_M, BLOCK_N], tl.float32)
    acc_up = tl.zeros_like(acc)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K)
        value = tl.load(lines + k[None, :], mask=some[:, None] & (k < K)[None, :], other=0.0)
        if GROUPED:
            step = start // BLOCK_K
            by_group = x_scales + step * group_stride
            by_pair = tl.load(by_group + source * row_stride, mask=some, other=0.0)
            if BLOCK_OUT == 0:
                by_output = tl.full([BLOCK_N], 1.0, tl.float32)
            else:
                by_output = _output_scales(scales, rows, live, step, K, BLOCK_OUT)
            acc += _product(weight, top + col, start, value, TURNED) * _spread(
                by_output, by_pair, TURNED
            )
            if ACT != "none":
                if BLOCK_OUT != 0:
                    by_output = _output_scales(scales, N + rows, live, step, K, BLOCK_OUT)
                acc_up += _product(weight, top + N + col, start, value, TURNED) * _spread(
                    by_output, by_pair, TURNED
                )
        else:
            acc = _add_product(acc, weight, top + col, start, value, TURNED)
            if ACT != "none":
                acc_up = _add_product(acc_up, weight, top + N + col, start, value, TURNED)
    if GROUPED:
        by_pair = tl.full([BLOCK_M], 1.0, tl.float32)
    else:
        by_pair = tl.load(x_scales + source, mask=some, other=0.0)
    if BLOCK_OUT == 0:
        acc *= _spread(_output_scales(scales, rows, live, 0, K, 0), by_pair, TURNED)
        if ACT != "none":
            acc_up *= _spread(_output_scales(scales, N + rows, live, 0, K, 0), by_pair, TURNED)
    if ACT != "none":
        acc = gate(acc, ACT) * acc_up
    if TURNED:
        acc = tl.trans(acc)
    if ACT != "none":
        # What lies beyond the last output is the next expert's.
        acc = tl.where(live[None, :], acc, 0.0)
        _store_rounded(acc, out, out_scales, target, some, cols, live, block, N,
                       (N + BLOCK_N - 1) // BLOCK_N)  # fmt: skip
    else:
        place = out + target.to(tl.int64)[:, None] * N + cols[None, :]
        tl.store(place, acc.to(out.dtype.element_ty), mask=some[:, None] & live[None, :])


def _launch(
    x: QuantizedRows,
    stack: Fp8Stack,
    work: Work,
    out: Tensor,
    out_scales: Tensor | None,
    tuning: GroupTuning,
    act: str,
) -> None:
    width_in, width_out = x.values.shape[1], out.shape[1]
    is_grouped = x.scales.dim() == 2  # a scale per row and group
    require(is_grouped or stack.block_outputs == 0, "blocks of weights ask for rows with groups")
    if is_grouped:
        groups = ceil_div(width_in, GROUP)
        require(x.scales.shape[1] == groups, f"{x.scales.shape[1]} scales of {groups} groups")
        require(tuning.block_k == GROUP, f"a step of groups has {GROUP} columns")
    listed = listed_work(work)
    _fp8_grouped_kernel[(listed.num_tiles * ceil_div(width_out, tuning.block_n),)](
        x.values,
        x.scales,
        x.scales.stride(0),
        x.group_stride,
        TensorDescriptor.from_tensor(stack.values, [tuning.block_n, tuning.block_k]),
        stack.scales,
        listed.order,
        listed.tiles,
        None if act == "none" else listed.watch,
        out,
        out_scales,
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
        BLOCK_OUT=stack.block_outputs,
        GROUPED=is_grouped,
        ACT=act,
        num_warps=tuning.num_warps,
        **dependent_launch(out.device),
    )


def fp8_experts_up(
    x: QuantizedRows,
    gate_up: Fp8Stack,
    inner: int,
    work: Work,
    act: ActivationKind,
    *,
    tuning: GroupTuning | None = None,
) -> QuantizedRows:
    """Return act(gate) * up of every pair, in the order of the work, rounded per 128 columns.

    Args:
        x: [T, H], with a scale per row, or, for experts with scales of blocks, per 128 columns.
        gate_up: [E * 2 I, H], of each expert first the I gates, then what they gate. inner: I.
        work: of the T rows.
    Returns: [T * top_k, I] with a scale per pair and 128 columns; sums and activation in fp32.
        Twin: reference.mix with both dequantised.
    Raises: KernelInputError on other shapes or an unknown activation.
    """
    require(act in KINDS, f"unknown activation {act!r}, have {KINDS}")
    gate_up.check_product(x.values.shape[1], 2 * inner)
    require_contiguous(x=x.values)
    tuning = tuning or fp8_up_tuning(work.tile_rows)
    require(tuning.block_n == GROUP, f"a program has {GROUP} outputs, which share a scale")
    pairs, device = num_pairs(work), x.values.device
    values = torch.empty(pairs, inner, dtype=x.values.dtype, device=device)
    scales = torch.empty(pairs, ceil_div(inner, GROUP), dtype=torch.float32, device=device)
    _launch(x, gate_up, work, values, scales, tuning, act)
    return QuantizedRows(values, scales)


def fp8_experts_down(
    x: QuantizedRows,
    down: Fp8Stack,
    width: int,
    work: Work,
    out_dtype: torch.dtype,
    *,
    tuning: GroupTuning | None = None,
) -> Tensor:
    """Return every pair's product with its expert's last weight, in the order of the pairs.

    Args:
        x: [T * top_k, I], as `fp8_experts_up` returns it. down: [E * H, I]. width: H.
    Returns: [T * top_k, H] of `out_dtype`, not weighted; sums in fp32.
    Raises: KernelInputError on other shapes.
    """
    down.check_product(x.values.shape[1], width)
    require_contiguous(x=x.values)
    out = torch.empty(num_pairs(work), width, dtype=out_dtype, device=x.values.device)
    _launch(x, down, work, out, None, tuning or fp8_down_tuning(work.tile_rows), "none")
    return out
