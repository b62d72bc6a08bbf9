"""Linear layers of few rows, fused with the norm before and the gate or residual behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tokenbus.kernels.activation import KINDS
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    next_power_of_2,
    require,
    require_contiguous,
)
from tokenbus.kernels.matvec import matvec_kernel
from tokenbus.kernels.small_matmul import small_matmul_kernel

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.activation import ActivationKind

MAX_ROWS = 16


@dataclass(frozen=True, slots=True)
class LinearTuning:
    """How one shape is laid out: outputs per program, columns per step, warps, steps in flight."""

    block_n: int
    block_k: int
    num_warps: int
    stages: int = 3


def choose_tuning(num_rows: int, width_in: int, width_out: int, gated: bool) -> LinearTuning:
    """Pick the layout for a shape.

    One row: two outputs per program keep thousands of programs in flight; several rows: enough
    programs to cover the chip twice.
    """
    if num_rows == 1:
        return LinearTuning(2, min(1024, next_power_of_2(width_in)), 4)
    block_n = 64
    while block_n > 16 and ceil_div(width_out, block_n) < 264:
        block_n //= 2
    if gated:
        block_n = max(16, block_n // 2)
    return LinearTuning(block_n, 256 if width_in >= 256 else next_power_of_2(width_in), 4)


@dataclass(frozen=True, slots=True)
class Fusion:
    """What surrounds the product: rms_norm(x) in front, + bias, act(gate) * up, + residual.

    norm_weight: [K]. bias: [width of weight]. residual: [M, N]. With `act` the weight holds gate
    and up rows, [2 N, K].
    """

    norm_weight: Tensor | None = None
    norm_add_one: bool = False
    eps: float = 1e-6
    bias: Tensor | None = None
    act: ActivationKind | None = None
    residual: Tensor | None = None


PLAIN = Fusion()


def _check(x: Tensor, weight: Tensor, fusion: Fusion, num_rows: int, width_out: int) -> None:
    """Refuse shapes that the kernels would read wrongly."""
    require(1 <= num_rows <= MAX_ROWS, f"{num_rows} rows, the small kernels take 1 to {MAX_ROWS}")
    require(weight.shape[1] == x.shape[1], f"x is {x.shape[1]} wide, weight {weight.shape[1]}")
    require(weight.dtype == x.dtype, f"x is {x.dtype}, weight is {weight.dtype}")
    require(fusion.act is None or fusion.act in KINDS, f"unknown activation {fusion.act!r}")
    require_contiguous(
        x=x, weight=weight, bias=fusion.bias, residual=fusion.residual, norm=fusion.norm_weight
    )
    residual = fusion.residual
    require(
        residual is None or residual.shape == (num_rows, width_out),
        f"residual does not have the result's shape ({num_rows}, {width_out})",
    )


def small_linear(
    x: Tensor,
    weight: Tensor,
    fusion: Fusion = PLAIN,
    *,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    tuning: LinearTuning | None = None,
) -> Tensor:
    """Multiply 1 to 16 rows by a weight, with what surrounds the product fused in.

    Args:
        x: [M, K], contiguous, 1 <= M <= 16. weight: [N, K], or [2 N, K] with `fusion.act`.
    Returns: [M, N], dtype of x or `out_dtype`; sums and everything fused are fp32.
    Raises: KernelInputError on other shapes. Twin: reference.fused_linear.
    """
    num_rows, width_in = x.shape
    width_out = weight.shape[0] // (2 if fusion.act else 1)
    _check(x, weight, fusion, num_rows, width_out)
    if out is None:
        out = torch.empty(num_rows, width_out, dtype=out_dtype or x.dtype, device=x.device)
    tuning = tuning or choose_tuning(num_rows, width_in, width_out, fusion.act is not None)
    tensors = (x, weight, fusion.bias, fusion.residual, fusion.norm_weight, out)
    grid = (ceil_div(width_out, tuning.block_n),)
    options = {
        "K": width_in,
        "BLOCK_K": tuning.block_k,
        "HAS_BIAS": fusion.bias is not None,
        "HAS_RESIDUAL": fusion.residual is not None,
        "HAS_NORM": fusion.norm_weight is not None,
        "ADD_ONE": fusion.norm_add_one,
        "ACT": fusion.act or "none",
        "num_warps": tuning.num_warps,
        **dependent_launch(x.device),
    }
    if num_rows == 1:
        matvec_kernel[grid](*tensors, width_out, fusion.eps, ROWS=tuning.block_n, **options)
    else:
        small_matmul_kernel[grid](
            *tensors,
            num_rows,
            width_out,
            fusion.eps,
            ROWS=16,
            BLOCK_N=tuning.block_n,
            SLICES=tuning.num_warps,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
            **options,
        )
    return out
