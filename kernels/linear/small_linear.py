"""Linear layers of few rows, fused with the norm before and the gate or residual behind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from tokenbus.kernels.activation import KINDS, gated_act
from tokenbus.kernels.exchange import arguments_of, exchange
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    next_power_of_2,
    require,
    require_contiguous,
)
from tokenbus.kernels.linear.matvec import matvec_kernel
from tokenbus.kernels.linear.small_matmul import small_matmul_kernel
from tokenbus.kernels.linear.table import LinearRole, LinearTuning, choose_tuning
from tokenbus.kernels.norm import rms_norm

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.activation import ActivationKind
    from tokenbus.kernels.exchange import Exchange

MAX_ROWS = 16


@dataclass(frozen=True, slots=True)
class Fusion:
    """What surrounds the product: rms_norm(x) in front, + bias, act(gate) * up, + residual.

    norm_weight: [K]. bias: [width of weight]. With `act` the weight holds gate and up rows,
    [2 N, K]. among: ranks over which the product is summed before the residual. residual: [M, N]
    float32, overwritten with the sum, of which the result is rounded.
    """

    norm_weight: Tensor | None = None
    norm_add_one: bool = False
    eps: float = 1e-6
    bias: Tensor | None = None
    act: ActivationKind | None = None
    among: Exchange | None = None
    residual: Tensor | None = None

    @property
    def role(self) -> LinearRole:
        """What costs most beside the product itself."""
        if self.act is not None:
            return LinearRole.GATED
        if self.residual is not None:
            return LinearRole.RESIDUAL
        return LinearRole.PLAIN if self.norm_weight is None else LinearRole.NORM

    def check(self, num_rows: int, num_outputs: int, width_out: int) -> None:
        """Raise KernelInputError for what does not fit a weight [num_outputs, K] and its result.

        num_rows and width_out are the result's.
        """
        require(self.act is None or self.act in KINDS, f"unknown activation {self.act!r}")
        require(
            self.act is None or num_outputs == 2 * width_out,
            f"gate and up have {num_outputs} rows together",
        )
        residual = self.residual
        require(
            residual is None or residual.shape == (num_rows, width_out),
            f"residual does not have the result's shape ({num_rows}, {width_out})",
        )
        require(residual is None or residual.dtype == torch.float32, "residual is not float32")
        require_contiguous(bias=self.bias, residual=residual, norm=self.norm_weight)


PLAIN = Fusion()


def _check(x: Tensor, weight: Tensor, fusion: Fusion, num_rows: int, width_out: int) -> None:
    """Refuse shapes that the kernels would read wrongly."""
    require(1 <= num_rows <= MAX_ROWS, f"{num_rows} rows, the small kernels take 1 to {MAX_ROWS}")
    require(weight.shape[1] == x.shape[1], f"x is {x.shape[1]} wide, weight {weight.shape[1]}")
    require(weight.dtype == x.dtype, f"x is {x.dtype}, weight is {weight.dtype}")
    fusion.check(num_rows, weight.shape[0], width_out)
    require_contiguous(x=x, weight=weight)


def _compose(x: Tensor, weight: Tensor, fusion: Fusion, out_dtype: torch.dtype) -> Tensor:
    """Compute the same through cuBLAS, one kernel per step."""
    if fusion.norm_weight is not None:
        x = rms_norm(x, fusion.norm_weight, fusion.eps, add_one=fusion.norm_add_one)
    if out_dtype == torch.float32:
        value = wide_linear(x, weight, fusion.bias)
    else:
        value = torch.nn.functional.linear(x, weight, fusion.bias)
    if fusion.act is not None:
        value = gated_act(value, fusion.act)
    if fusion.among is not None:
        return exchange(value, fusion.among, fusion.residual, fusion.residual)
    if fusion.residual is not None:
        value = fusion.residual.add_(value)
    return value.to(out_dtype)


def _row_summed(
    x: Tensor, weight: Tensor, fusion: Fusion, among: Exchange, tuning: LinearTuning | None
) -> Tensor:
    """Sum one row over ranks behind its product, whose thousands of programs would each wait.

    On two H200 a layer of 4,096 wide states takes 59 us so, and 64 us if its products exchange.
    """
    plain, residual = replace(fusion, among=None, residual=None), fusion.residual
    part = small_linear(x, weight, plain, out_dtype=torch.float32, tuning=tuning)
    return exchange(part, among, residual, residual, dtype=x.dtype)


def wide_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x: [M, K], weight: [N, K], bias: [N] or None -> [M, N] float32, the sums unrounded."""
    if x.is_cuda and x.dtype != torch.float32:
        value = torch.mm(x, weight.T, out_dtype=torch.float32)
        return value if bias is None else value + bias
    return torch.nn.functional.linear(x, weight, bias).float()


def small_linear(
    x: Tensor,
    weight: Tensor,
    fusion: Fusion = PLAIN,
    *,
    out_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    tuning: LinearTuning | None = None,
) -> Tensor:
    """Multiply 1 to 16 rows by a weight, with what surrounds the product fused in.

    Shapes for which cuBLAS is faster go through cuBLAS, unless `tuning` is given.

    Args:
        x: [M, K], contiguous, 1 <= M <= 16. weight: [N, K], or [2 N, K] with `fusion.act`.
        out: [M, N] to write to, of the wanted dtype.
    Returns: [M, N], dtype of x or `out_dtype`; sums and everything fused are fp32.
    Raises: KernelInputError on other shapes. Twin: reference.fused_linear.
    """
    num_rows, width_in = x.shape
    width_out = weight.shape[0] // (2 if fusion.act else 1)
    _check(x, weight, fusion, num_rows, width_out)
    dtype = out.dtype if out is not None else out_dtype or x.dtype
    tuning = tuning or choose_tuning(num_rows, width_in, width_out, fusion.role)
    if num_rows == 1 and fusion.among is not None:
        return _row_summed(x, weight, fusion, fusion.among, tuning)
    if tuning is None:
        value = _compose(x, weight, fusion, dtype)
        return value if out is None else out.copy_(value)
    if x.element_size() > 2:
        # Layouts were swept in 16 bits, and some fill the shared memory.
        tuning = replace(tuning, stages=max(1, tuning.stages // 2))
    if tuning.norm_apart and fusion.norm_weight is not None:
        x = rms_norm(x, fusion.norm_weight, fusion.eps, add_one=fusion.norm_add_one)
        fusion = replace(fusion, norm_weight=None)
    if out is None:
        out = torch.empty(num_rows, width_out, dtype=dtype, device=x.device)
    tensors = (fusion.residual, fusion.norm_weight, out)
    grid = (ceil_div(width_out, (tuning.width or tuning.block_n) * tuning.groups),)
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
        matvec_kernel[grid](
            x,
            weight,
            None,
            fusion.bias,
            *tensors,
            width_out,
            fusion.eps,
            ROWS=tuning.block_n,
            GROUPS=tuning.groups,
            AHEAD=tuning.ahead,
            BY_WARP=tuning.by_warp,
            HAS_SCALES=False,
            BLOCK_OUT=0,
            **options,
        )
    else:
        early = min(tuning.early, width_in) if options["PDL"] else 0
        addresses, side, ranks = arguments_of(fusion.among, torch.float32)
        small_matmul_kernel[grid](
            x,
            weight,
            fusion.bias,
            addresses,
            *tensors,
            side,
            num_rows,
            width_out,
            fusion.eps,
            ROWS=16,
            WIDTH=tuning.width or tuning.block_n,
            BLOCK_N=tuning.block_n,
            SLICES=tuning.slices,
            STAGES=tuning.stages,
            EARLY_LINES=next_power_of_2(ceil_div(early, 64)) if early else 0,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
            **ranks,
            **options,
        )
    return out
