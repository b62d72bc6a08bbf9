"""Linear layers with weights of four bits, from one row to thousands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import triton.language as tl

from tokenbus.kernels.activation import gated_act
from tokenbus.kernels.int4.layout import BLOCK, check_int4
from tokenbus.kernels.int4.matmul import (
    Int4RowsTuning,
    int4_matmul_kernel,
    int4_widen_kernel,
)
from tokenbus.kernels.int4.rows import int4_rows_kernel
from tokenbus.kernels.int4.split_rows import split_rows
from tokenbus.kernels.int4.table import WIDEN_TILE, choose_int4_tuning
from tokenbus.kernels.int4.vector import Int4VectorTuning, int4_vector_kernel
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    next_power_of_2,
    require,
    shared_tiles,
)
from tokenbus.kernels.linear.small_linear import PLAIN, Fusion, wide_linear
from tokenbus.kernels.norm import rms_norm

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.int4.layout import PackedInt4
    from tokenbus.kernels.int4.matmul import Int4Tuning

_DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def int4_linear(
    x: Tensor,
    weight: PackedInt4,
    fusion: Fusion = PLAIN,
    *,
    out_dtype: torch.dtype | None = None,
    tuning: Int4Tuning | Int4RowsTuning | Int4VectorTuning | None = None,
) -> Tensor:
    """Multiply rows by a weight of four bits, with what surrounds the product.

    A lone row of two bytes is multiplied as it is, a few more are split into two numbers of e4m3
    first (see `split_rows`), which keeps more of a row's largest numbers than bfloat16 does. More
    rows stay as they are, and weights are widened to their dtype in registers. Where cuBLAS is
    faster over widened weights, they are written out for it, unless `tuning` is given.

    Args:
        x: [M, K], contiguous, bfloat16, float16 or float32. weight: [N, K], or [2 N, K] with
            `fusion.act`. fusion: anything but a norm that adds one to its weight.
    Returns: [M, N], dtype of x or `out_dtype`; sums and everything fused are fp32.
    Raises: KernelInputError on other shapes. Twin: reference.fused_linear, weight dequantised.
    """
    num_rows, width_in = x.shape
    width_out = weight.shape[0] // (2 if fusion.act else 1)
    _check(x, weight, fusion, width_out)
    dtype = out_dtype or x.dtype
    if num_rows == 0:
        return torch.empty(0, width_out, dtype=dtype, device=x.device)
    if tuning is None:
        splits_rows = weight.group == BLOCK and x.element_size() == 2
        norm = fusion.norm_weight
        in_pairs = norm is None or norm.element_size() == 2
        tuning = choose_int4_tuning(
            num_rows,
            width_in,
            width_out,
            fusion.role,
            splits_rows=splits_rows,
            takes_vector=splits_rows and in_pairs and weight.order is None,
        )
    out = torch.empty(num_rows, width_out, dtype=dtype, device=x.device)
    if isinstance(tuning, Int4VectorTuning):
        _launch_vector(x, weight, fusion, out, tuning)
        return out
    if isinstance(tuning, Int4RowsTuning):
        _launch_rows(x, weight, fusion, out, tuning)
        return out
    if fusion.norm_weight is not None:
        x = rms_norm(x, fusion.norm_weight, fusion.eps)
    if weight.order is not None:
        x = x.index_select(1, weight.order)
    if tuning is None:
        return _by_widening(x, weight, fusion, dtype)
    _launch(x, weight, fusion, out, tuning)
    return out


def widened_int4(weight: PackedInt4, dtype: torch.dtype) -> Tensor:
    """Return (step - zero) * scale in `dtype`, columns in their packed order: [N, K]."""
    num_outputs, num_inputs = weight.shape
    out = torch.empty(num_outputs, num_inputs, dtype=dtype, device=weight.words.device)
    block_n, num_warps = WIDEN_TILE
    grid = (ceil_div(num_outputs, block_n), ceil_div(num_inputs, BLOCK))
    int4_widen_kernel[grid](
        weight.words,
        weight.metas,
        out,
        num_outputs,
        K=num_inputs,
        BLOCK_N=block_n,
        GROUP=weight.group,
        SCALES=_DTYPES[weight.scale_dtype],
        DTYPE=_DTYPES[dtype],
        BY_ASM=out.is_cuda,
        num_warps=num_warps,
        **dependent_launch(out.device),
    )
    return out


def _check(x: Tensor, weight: PackedInt4, fusion: Fusion, width_out: int) -> None:
    """Refuse shapes that the kernels would read wrongly."""
    check_int4(weight, x)
    require(x.dtype in _DTYPES, f"x is {x.dtype}")
    require(not fusion.norm_add_one, "a norm has its whole weight")
    fusion.check(x.shape[0], weight.shape[0], width_out)


def _by_widening(x: Tensor, weight: PackedInt4, fusion: Fusion, dtype: torch.dtype) -> Tensor:
    """Multiply through cuBLAS, one kernel per step."""
    values = widened_int4(weight, x.dtype)
    if dtype == torch.float32:
        value = wide_linear(x, values, fusion.bias)
    else:
        value = F.linear(x, values, fusion.bias)
    if fusion.act is not None:
        value = gated_act(value, fusion.act)
    if fusion.residual is not None:
        value = fusion.residual.add_(value)
    return value.to(dtype)


def _options(
    x: Tensor, weight: PackedInt4, fusion: Fusion, tuning: Int4Tuning | Int4RowsTuning
) -> dict[str, Any]:
    """Return what both kernels are compiled for."""
    return {
        "K": weight.num_inputs,
        "BLOCK_N": tuning.block_n,
        "BLOCKS": tuning.blocks,
        "SPLITS": tuning.splits,
        "STAGES": tuning.stages,
        "SCALES": _DTYPES[weight.scale_dtype],
        "BY_ASM": x.is_cuda,
        "HAS_BIAS": fusion.bias is not None,
        "HAS_RESIDUAL": fusion.residual is not None,
        "ACT": fusion.act or "none",
        "num_warps": tuning.num_warps,
        "num_stages": tuning.stages,
        **dependent_launch(x.device),
    }


def _launch_vector(
    x: Tensor, weight: PackedInt4, fusion: Fusion, out: Tensor, tuning: Int4VectorTuning
) -> None:
    """Write the product of a lone row to `out`."""
    norm, width_out = fusion.norm_weight, out.shape[1]
    require(len(x) == 1, f"{len(x)} rows, a vector is one")
    require(weight.group == BLOCK, f"groups of {weight.group} inputs, a row is summed by {BLOCK}")
    require(weight.order is None, "inputs have an order of their own")
    in_pairs = x.element_size() == 2 and (norm is None or norm.element_size() == 2)
    require(in_pairs, f"x is {x.dtype}, a row comes by pairs of two bytes, and its norm")
    num_blocks = ceil_div(weight.num_inputs, BLOCK)
    outputs = tuning.tiles * tuning.block_n // (2 if fusion.act else 1)
    int4_vector_kernel[(ceil_div(width_out, outputs),)](
        x.view(torch.int32),
        weight.words.view(torch.int32),
        weight.metas,
        fusion.bias,
        fusion.residual,
        None if norm is None else norm.view(torch.int32),
        out,
        width_out,
        fusion.eps,
        K=weight.num_inputs,
        BLOCK_N=tuning.block_n,
        BLOCKS=next_power_of_2(num_blocks),
        TILES=tuning.tiles,
        SCALES=_DTYPES[weight.scale_dtype],
        DTYPE=_DTYPES[x.dtype],
        NORM_DTYPE=None if norm is None else _DTYPES[norm.dtype],
        BY_ASM=x.is_cuda,
        HAS_BIAS=fusion.bias is not None,
        HAS_RESIDUAL=fusion.residual is not None,
        HAS_NORM=norm is not None,
        ACT=fusion.act or "none",
        num_warps=tuning.num_warps,
        maxnreg=tuning.max_registers,
        **dependent_launch(x.device),
    )


def _launch_rows(
    x: Tensor, weight: PackedInt4, fusion: Fusion, out: Tensor, tuning: Int4RowsTuning
) -> None:
    """Write the product of up to 16 rows to `out`."""
    rows = split_rows(x, norm_weight=fusion.norm_weight, eps=fusion.eps, order=weight.order)
    require(weight.group == BLOCK, f"groups of {weight.group} inputs, rows are summed by {BLOCK}")
    tiles = ceil_div(out.shape[1], tuning.block_n // (2 if fusion.act else 1))
    parts, arrivals = shared_tiles(tiles, tuning.splits, rows.height * tuning.block_n, x.device)
    int4_rows_kernel[(tiles, tuning.splits)](
        rows.parts,
        rows.scales,
        rows.sums,
        weight.words.view(torch.uint8),
        weight.metas,
        fusion.bias,
        fusion.residual,
        out,
        parts,
        arrivals,
        *out.shape,
        HEIGHT=rows.height,
        **_options(x, weight, fusion, tuning),
    )


def _launch(x: Tensor, weight: PackedInt4, fusion: Fusion, out: Tensor, tuning: Int4Tuning) -> None:
    """Write the product of rows as they are to `out`."""
    width = tuning.block_n // (2 if fusion.act else 1)
    tiles = ceil_div(out.shape[0], tuning.block_m) * ceil_div(out.shape[1], width)
    parts, arrivals = shared_tiles(tiles, tuning.splits, tuning.block_m * tuning.block_n, x.device)
    int4_matmul_kernel[(tiles, tuning.splits)](
        x,
        weight.words,
        weight.metas,
        fusion.bias,
        fusion.residual,
        out,
        parts,
        arrivals,
        *out.shape,
        BLOCK_M=tuning.block_m,
        GROUP=weight.group,
        DTYPE=_DTYPES[x.dtype],
        **_options(x, weight, fusion, tuning),
    )
