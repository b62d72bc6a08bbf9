"""Linear layers with FP8 weights, from one row to thousands."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from tokenbus.kernels.activation import KINDS, gated_act
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    next_power_of_2,
    num_processors,
    require,
    require_contiguous,
)
from tokenbus.kernels.linear.fp8_matmul import MatmulTuning, fp8_matmul_kernel
from tokenbus.kernels.linear.fp8_rows import RowsTuning, fp8_rows_kernel
from tokenbus.kernels.linear.fp8_table import (
    MAX_TALL_ROWS,
    choose_matmul_tuning,
    choose_matvec_tuning,
    choose_rows_tuning,
)
from tokenbus.kernels.linear.matvec import matvec_kernel
from tokenbus.kernels.linear.small_linear import MAX_ROWS, PLAIN, Fusion
from tokenbus.kernels.norm import rms_norm
from tokenbus.kernels.quantize import FP8, QuantizedRows, quantize_rows

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.linear.table import LinearTuning

# Tiles that share columns, over all launches at a time: a count each.
_MAX_TILES = 4096


@cache
def _arrivals(device: torch.device) -> Tensor:
    """Return the counts of programs that ended, zero between launches."""
    return torch.zeros(_MAX_TILES, dtype=torch.int32, device=device)


def check_fp8_weight(values: Tensor, scales: Tensor) -> None:
    """Raise KernelInputError for a weight that the kernels cannot fetch.

    Rows of a tensor descriptor begin at multiples of 16 bytes, those of the outputs too.
    """
    require(values.dtype == FP8, f"the weight is {values.dtype}, not {FP8}")
    require_contiguous(weight=values, scales=scales)
    num_outputs, num_inputs = values.shape
    require(scales.shape == (num_outputs,), f"{tuple(scales.shape)} scales, {num_outputs} outputs")
    require(scales.dtype == torch.float32, f"scales are {scales.dtype}, not float32")
    require(
        num_outputs % 16 == 0 and num_inputs % 16 == 0,
        f"{num_outputs} outputs and {num_inputs} inputs: 16 does not divide both",
    )


def fp8_small_linear(
    x: Tensor,
    values: Tensor,
    scales: Tensor,
    fusion: Fusion = PLAIN,
    *,
    out_dtype: torch.dtype | None = None,
    tuning: LinearTuning | RowsTuning | None = None,
) -> Tensor:
    """Multiply 1 to 16 rows by an FP8 weight, with what surrounds the product fused in.

    One row is multiplied as it is. More are rounded to e4m3 on the way, with a scale per row and
    some hundred columns, so that what a row becomes does not depend on the rows beside it.

    Args:
        x: [M, K], contiguous, 1 <= M <= 16. values: [N, K] e4m3, or [2 N, K] with `fusion.act`.
        scales: [N] or [2 N] float32, of the outputs.
    Returns: [M, N], dtype of x or `out_dtype`; sums and everything fused are fp32.
    Raises: KernelInputError on other shapes. Twin: reference.fused_linear of the dequantised weight.
    """
    num_rows, width_in = x.shape
    width_out = values.shape[0] // (2 if fusion.act else 1)
    _check(x, values, fusion, width_out)
    require(1 <= num_rows <= MAX_ROWS, f"{num_rows} rows, the small kernels take 1 to {MAX_ROWS}")
    residual = fusion.residual
    require(
        residual is None
        or (residual.shape == (num_rows, width_out) and residual.dtype == torch.float32),
        f"residual is not ({num_rows}, {width_out}) in float32",
    )
    require_contiguous(x=x, bias=fusion.bias, residual=residual, norm=fusion.norm_weight)
    out = torch.empty(num_rows, width_out, dtype=out_dtype or x.dtype, device=x.device)
    if num_rows > 1 or isinstance(tuning, RowsTuning):
        tuning = tuning or choose_rows_tuning(num_rows, width_in, width_out, fusion.role)
        assert isinstance(tuning, RowsTuning)
        norm = fusion.norm_weight
        if norm is not None and tuning.splits > 1:
            # A program that has a part of the columns does not see the squares of the others.
            x = rms_norm(x, norm, fusion.eps, add_one=fusion.norm_add_one)
            norm = None
        _launch_rows(x, values, scales, fusion, norm, out, tuning)
        return out
    chosen = tuning or choose_matvec_tuning(width_in, width_out, fusion.role)
    matvec_kernel[(ceil_div(width_out, chosen.block_n),)](
        x,
        values,
        scales,
        fusion.bias,
        residual,
        fusion.norm_weight,
        out,
        width_out,
        fusion.eps,
        K=width_in,
        ROWS=chosen.block_n,
        BLOCK_K=chosen.block_k,
        HAS_SCALES=True,
        HAS_BIAS=fusion.bias is not None,
        HAS_RESIDUAL=residual is not None,
        HAS_NORM=fusion.norm_weight is not None,
        ADD_ONE=fusion.norm_add_one,
        ACT=fusion.act or "none",
        num_warps=chosen.num_warps,
        **dependent_launch(x.device),
    )
    return out


def fp8_linear(
    x: Tensor | QuantizedRows,
    values: Tensor,
    scales: Tensor,
    fusion: Fusion = PLAIN,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    tuning: RowsTuning | MatmulTuning | None = None,
) -> Tensor:
    """Multiply rows of e4m3 by an FP8 weight, with bias and gate behind.

    Args:
        x: [M, K], contiguous; rounded first, with a scale per row, unless it is.
        values: [N, K] e4m3, or [2 N, K] with `fusion.act`. scales: [N] or [2 N] float32.
        fusion: bias and act; norm and residual are steps of their own for many rows.
        out_dtype: of the result; that of x unless x is rounded already.
    Returns: [M, N]; sums, scales and everything fused are fp32.
    Raises: KernelInputError on other shapes. Twin: reference.fused_linear of both dequantised.
    """
    if not isinstance(x, QuantizedRows):
        out_dtype = x.dtype
        x = quantize_rows(x)
    num_rows, width_in = x.values.shape
    width_out = values.shape[0] // (2 if fusion.act else 1)
    _check(x.values, values, fusion, width_out)
    require(fusion.norm_weight is None and fusion.residual is None, "norm and sum are not fused")
    require_contiguous(x=x.values, bias=fusion.bias)
    out = torch.empty(num_rows, width_out, dtype=out_dtype, device=values.device)
    if num_rows == 0:
        return out
    if tuning is None and num_rows <= MAX_TALL_ROWS:
        tuning = choose_rows_tuning(num_rows, width_in, width_out, fusion.role)
    if isinstance(tuning, RowsTuning):
        _launch_rows(x, values, scales, fusion, None, out, tuning)
        return out
    if fusion.act is not None:
        both = Fusion(bias=fusion.bias)
        gate_up = fp8_linear(x, values, scales, both, out_dtype=out_dtype, tuning=tuning)
        return gated_act(gate_up, fusion.act)
    chosen = tuning or choose_matmul_tuning(num_rows, width_in, width_out)
    tiles = ceil_div(num_rows, chosen.block_m) * ceil_div(width_out, chosen.block_n)
    stored_n = chosen.block_n // 2 if chosen.halves else chosen.block_n
    fp8_matmul_kernel[(min(num_processors(values.device), tiles),)](
        TensorDescriptor.from_tensor(x.values, [chosen.block_m, chosen.block_k]),
        x.scales,
        TensorDescriptor.from_tensor(values, [chosen.block_n, chosen.block_k]),
        scales,
        fusion.bias,
        TensorDescriptor.from_tensor(out, [chosen.block_m, stored_n]),
        num_rows,
        width_out,
        K=width_in,
        BLOCK_M=chosen.block_m,
        BLOCK_N=chosen.block_n,
        BLOCK_K=chosen.block_k,
        GROUP=chosen.group,
        PROGRAMS=num_processors(values.device),
        HALVES=chosen.halves,
        HAS_BIAS=fusion.bias is not None,
        num_warps=chosen.num_warps,
        num_stages=chosen.stages,
        **dependent_launch(values.device),
    )
    return out


def _check(x: Tensor, values: Tensor, fusion: Fusion, width_out: int) -> None:
    """Refuse shapes that the kernels would read wrongly."""
    require(values.shape[1] == x.shape[1], f"x is {x.shape[1]} wide, weight {values.shape[1]}")
    require(fusion.act is None or fusion.act in KINDS, f"unknown activation {fusion.act!r}")
    require(
        fusion.act is None or values.shape[0] == 2 * width_out,
        f"gate and up have {values.shape[0]} rows together",
    )


def _launch_rows(
    x: Tensor | QuantizedRows,
    values: Tensor,
    scales: Tensor,
    fusion: Fusion,
    norm_weight: Tensor | None,
    out: Tensor,
    tuning: RowsTuning,
) -> None:
    """Write the product of few rows to `out`."""
    num_rows, width_out = out.shape
    width_in = values.shape[1]
    rounded = isinstance(x, QuantizedRows)
    height = next_power_of_2(max(num_rows, 16))
    tiles = ceil_div(width_out, tuning.block_n)
    require(tuning.splits == 1 or tiles <= _MAX_TILES, f"{tiles} tiles share columns")
    require(tuning.splits == 1 or fusion.act is None, "gates are not split")
    parts = arrivals = None
    if tuning.splits > 1:
        size = (tiles, tuning.splits, height * tuning.block_n)
        parts = torch.empty(size, dtype=torch.float32, device=values.device)
        arrivals = _arrivals(values.device)
    span = ceil_div(width_in, tuning.splits * tuning.block_k) * tuning.block_k
    launch = dependent_launch(values.device)
    early = tuning.early and launch["PDL"]
    operand = x
    if isinstance(x, QuantizedRows):
        operand = TensorDescriptor.from_tensor(x.values, [height, tuning.block_k])
    fp8_rows_kernel[(tiles, tuning.splits)](
        operand,
        x.scales if isinstance(x, QuantizedRows) else None,
        TensorDescriptor.from_tensor(values, [tuning.block_n, tuning.block_k]),
        values,
        scales,
        fusion.bias,
        fusion.residual,
        norm_weight,
        out,
        parts,
        arrivals,
        num_rows,
        width_out,
        fusion.eps,
        K=width_in,
        ROWS=height,
        BLOCK_N=tuning.block_n,
        BLOCK_K=tuning.block_k,
        SPLITS=tuning.splits,
        STAGES=tuning.stages,
        EARLY_LINES=next_power_of_2(ceil_div(span, 128)) if early else 0,
        ROUNDED=rounded,
        HAS_BIAS=fusion.bias is not None,
        HAS_RESIDUAL=fusion.residual is not None,
        HAS_NORM=norm_weight is not None,
        ACT=fusion.act or "none",
        num_warps=tuning.num_warps,
        num_stages=tuning.stages,
        **launch,
    )
