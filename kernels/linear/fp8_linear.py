"""Linear layers with FP8 weights, from one row to thousands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from tokenbus.kernels.activation import gated_act
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    next_power_of_2,
    num_processors,
    require,
    require_contiguous,
    shared_tiles,
)
from tokenbus.kernels.linear.fp8_block_rows import BlockRowsTuning, multiply_block_rows
from tokenbus.kernels.linear.fp8_blocks import BlocksTuning, multiply_blocks
from tokenbus.kernels.linear.fp8_matmul import (
    MatmulTuning,
    fp8_matmul_kernel,
    multiply_by_library,
)
from tokenbus.kernels.linear.fp8_rows import RowsTuning, fp8_rows_kernel
from tokenbus.kernels.linear.fp8_shapes import (
    check_fp8_weight,
    check_product,
    check_scales,
    takes_blocks,
)
from tokenbus.kernels.linear.fp8_table import (
    MAX_GATED_ROWS,
    choose_matmul_tuning,
    choose_matvec_tuning,
    choose_rows_tuning,
    choose_turns_tuning,
    is_for_library,
    is_tall,
)
from tokenbus.kernels.linear.matvec import matvec_kernel
from tokenbus.kernels.linear.small_linear import PLAIN, Fusion

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.linear.table import LinearTuning
    from tokenbus.kernels.quantize import QuantizedRows


def fits_matvec(num_outputs: int, num_inputs: int, fusion: Fusion, block_outputs: int) -> bool:
    """Say whether `fp8_matvec` takes a weight: with a scale per block, programs fill blocks."""
    width_out = num_outputs // (2 if fusion.act else 1)
    tuning = choose_matvec_tuning(num_inputs, width_out, fusion.role)
    return not block_outputs or block_outputs % tuning.block_n == width_out % tuning.block_n == 0


def fp8_matvec(
    x: Tensor,
    values: Tensor,
    scales: Tensor,
    fusion: Fusion = PLAIN,
    *,
    block_outputs: int = 0,
    tuning: LinearTuning | None = None,
) -> Tensor:
    """Multiply one row, as it is, by an FP8 weight, with what surrounds the product fused in.

    Args:
        x: [1, K], contiguous. values: [N, K] e4m3, or [2 N, K] with `fusion.act`.
        scales: [N] or [2 N] float32, of the outputs.
        block_outputs: if not 0, of blocks of so many outputs and 128 inputs, as of `fp8_linear`.
    Returns: [1, N], dtype of x; sums and everything fused are fp32.
    Raises: KernelInputError on other shapes. Twin: reference.fused_linear, weight dequantised.
    """
    num_rows, width_in = x.shape
    width_out = values.shape[0] // (2 if fusion.act else 1)
    require(num_rows == 1, f"{num_rows} rows, this takes one")
    check_product(x, values, fusion, width_out)
    require_contiguous(norm=fusion.norm_weight)
    chosen = tuning or choose_matvec_tuning(width_in, width_out, fusion.role)
    check_fp8_weight(values, scales, block_outputs)
    if block_outputs:
        parts = f"{block_outputs} outputs a block, {width_out} in all, programs of {chosen.block_n}"
        require(block_outputs % chosen.block_n == width_out % chosen.block_n == 0, parts)
    out = torch.empty(1, width_out, dtype=x.dtype, device=x.device)
    matvec_kernel[(ceil_div(width_out, chosen.block_n * chosen.groups),)](
        x,
        values,
        scales,
        fusion.bias,
        fusion.residual,
        fusion.norm_weight,
        out,
        width_out,
        fusion.eps,
        K=width_in,
        ROWS=chosen.block_n,
        BLOCK_K=chosen.block_k,
        GROUPS=chosen.groups,
        AHEAD=chosen.ahead,
        BY_WARP=chosen.by_warp,
        HAS_SCALES=True,
        BLOCK_OUT=block_outputs,
        HAS_BIAS=fusion.bias is not None,
        HAS_RESIDUAL=fusion.residual is not None,
        HAS_NORM=fusion.norm_weight is not None,
        ADD_ONE=fusion.norm_add_one,
        ACT=fusion.act or "none",
        num_warps=chosen.num_warps,
        **dependent_launch(x.device),
    )
    return out


def fp8_linear(
    x: QuantizedRows,
    values: Tensor,
    scales: Tensor,
    fusion: Fusion = PLAIN,
    *,
    block_outputs: int = 0,
    out_dtype: torch.dtype = torch.bfloat16,
    tuning: RowsTuning | BlockRowsTuning | MatmulTuning | BlocksTuning | None = None,
) -> Tensor:
    """Multiply rows of e4m3 by an FP8 weight, with bias, gate and residual behind.

    Up to 128 rows are one launch, and up to 256 before a wide gate. More go through cuBLAS where it
    is faster, unless `tuning` is given, with gate or residual as launches of their own.

    Args:
        x: [M, K] with a scale per row. values: [N, K] e4m3, or [2 N, K] with `fusion.act`.
        scales: [N] or [2 N] float32, of the outputs. fusion: anything but a norm.
        block_outputs: if not 0, scales are those of blocks of so many outputs and 128 inputs,
            [ceil(N / block_outputs), ceil(K / 128)], and x has a scale per row and 128 columns.
    Returns: [M, N] of `out_dtype`; sums, scales and everything fused are fp32.
    Raises: KernelInputError on other shapes. Twin: reference.fused_linear, both dequantised.
    """
    num_rows = x.values.shape[0]
    width_out = values.shape[0] // (2 if fusion.act else 1)
    check_product(x.values, values, fusion, width_out)
    require(fusion.norm_weight is None, "a norm comes before its rows are rounded")
    if num_rows == 0:
        return torch.empty(0, width_out, dtype=out_dtype, device=values.device)
    if tuning is None and _is_for_library(x, values, block_outputs, fusion, out_dtype):
        check_scales(x, values, scales, block_outputs, None)
        product = multiply_by_library(x, values, scales)
        return _finish(product if fusion.bias is None else product.add_(fusion.bias), fusion)
    if tuning is None and takes_blocks(values.device, out_dtype, block_outputs):
        tuning = choose_turns_tuning(num_rows, values.shape[1], width_out, fusion.role)
    if tuning is None and is_tall(num_rows, width_out, fusion.role, blocks=block_outputs > 0):
        tuning = choose_rows_tuning(
            num_rows, values.shape[1], width_out, fusion.role, blocks=block_outputs > 0
        )
    check_scales(x, values, scales, block_outputs, tuning.block_k if tuning else None)
    if isinstance(tuning, BlockRowsTuning | RowsTuning):
        out = torch.empty(num_rows, width_out, dtype=out_dtype, device=values.device)
        if isinstance(tuning, RowsTuning):
            _launch_rows(x, values, scales, block_outputs, fusion, out, tuning)
        else:
            multiply_block_rows(x, values, scales, block_outputs, fusion, out, tuning)
        return out
    out = torch.empty(num_rows, values.shape[0], dtype=out_dtype, device=values.device)
    if isinstance(tuning, BlocksTuning):
        multiply_blocks(x, values, scales, block_outputs, fusion.bias, out, tuning)
    else:
        tuning = tuning or choose_matmul_tuning(num_rows, len(values), blocks=block_outputs > 0)
        _launch_matmul(x, values, scales, block_outputs, fusion.bias, out, tuning)
    return _finish(out, fusion)


def _is_for_library(
    x: QuantizedRows,
    values: Tensor,
    block_outputs: int,
    fusion: Fusion,
    out_dtype: torch.dtype,
) -> bool:
    """Say whether cuBLAS takes a product, and is faster."""
    if block_outputs or out_dtype != torch.bfloat16 or not values.is_cuda:
        return False
    num_rows, num_outputs = x.values.shape[0], values.shape[0]
    width_out = num_outputs // (2 if fusion.act else 1)
    if is_tall(num_rows, width_out, fusion.role):
        return False
    return is_for_library(num_rows, num_outputs, adds_bias=fusion.bias is not None)


def _finish(product: Tensor, fusion: Fusion) -> Tensor:
    """Gate a product and add the residual to it, in launches of their own."""
    value = product if fusion.act is None else gated_act(product, fusion.act)
    return value if fusion.residual is None else value.copy_(fusion.residual.add_(value))


def _described(x: QuantizedRows, height: int, width: int) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(x.in_tiles, [height, width])


def _launch_matmul(
    x: QuantizedRows,
    values: Tensor,
    scales: Tensor,
    block_outputs: int,
    bias: Tensor | None,
    out: Tensor,
    tuning: MatmulTuning,
) -> None:
    """Write the product of many rows to `out`."""
    num_rows, width_out = out.shape
    tiles = ceil_div(num_rows, tuning.block_m) * ceil_div(width_out, tuning.block_n)
    stored_n = tuning.block_n // 2 if tuning.halves else tuning.block_n
    programs = num_processors(values.device) * tuning.programs
    fp8_matmul_kernel[(min(programs, tiles),)](
        _described(x, tuning.block_m, tuning.block_k),
        x.scales,
        x.group_stride,
        TensorDescriptor.from_tensor(values, [tuning.block_n, tuning.block_k]),
        scales,
        bias,
        TensorDescriptor.from_tensor(out, [tuning.block_m, stored_n]),
        num_rows,
        width_out,
        K=values.shape[1],
        BLOCK_M=tuning.block_m,
        BLOCK_N=tuning.block_n,
        BLOCK_K=tuning.block_k,
        BLOCK_OUT=block_outputs,
        ONE_SCALE=block_outputs > 0 and block_outputs % tuning.block_n == 0,
        GROUP=tuning.group,
        PROGRAMS=programs,
        HALVES=tuning.halves,
        HAS_BIAS=bias is not None,
        num_warps=tuning.num_warps,
        num_stages=tuning.stages,
        **dependent_launch(values.device),
    )


def _launch_rows(
    x: QuantizedRows,
    values: Tensor,
    scales: Tensor,
    block_outputs: int,
    fusion: Fusion,
    out: Tensor,
    tuning: RowsTuning,
) -> None:
    """Write the product of few rows to `out`."""
    num_rows, width_out = out.shape
    require(num_rows <= MAX_GATED_ROWS, f"{num_rows} rows, this takes {MAX_GATED_ROWS}")
    height = next_power_of_2(max(num_rows, 16))
    tiles = ceil_div(width_out, tuning.block_n)
    # What a gate multiplies begins in the middle of a tile if tiles do not divide the outputs.
    one_scale = block_outputs > 0 and block_outputs % tuning.block_n == 0
    one_scale &= fusion.act is None or width_out % tuning.block_n == 0
    require(tuning.splits == 1 or fusion.act is None, "gates are not split")
    parts, arrivals = shared_tiles(tiles, tuning.splits, height * tuning.block_n, out.device)
    fp8_rows_kernel[(tiles, tuning.splits)](
        _described(x, height, tuning.block_k),
        x.scales,
        x.group_stride,
        TensorDescriptor.from_tensor(values, [tuning.block_n, tuning.block_k]),
        scales,
        fusion.bias,
        fusion.residual,
        out,
        parts,
        arrivals,
        num_rows,
        width_out,
        K=values.shape[1],
        ROWS=height,
        BLOCK_N=tuning.block_n,
        BLOCK_K=tuning.block_k,
        BLOCK_OUT=block_outputs,
        ONE_SCALE=one_scale,
        SPLITS=tuning.splits,
        HAS_BIAS=fusion.bias is not None,
        HAS_RESIDUAL=fusion.residual is not None,
        ACT=fusion.act or "none",
        num_warps=tuning.num_warps,
        num_stages=tuning.stages,
        **dependent_launch(values.device),
    )
