"""Shapes of FP8 products: what the kernels would read wrongly, refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tokenbus.kernels.hopper import is_hopper
from tokenbus.kernels.launch import ceil_div, require, require_contiguous
from tokenbus.kernels.quantize import FP8, GROUP

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.linear.small_linear import Fusion
    from tokenbus.kernels.quantize import QuantizedRows


def check_fp8_weight(values: Tensor, scales: Tensor, block_outputs: int = 0) -> None:
    """Raise KernelInputError for a weight that the kernels cannot fetch; see `fp8_linear`.

    Rows of a tensor descriptor begin at multiples of 16 bytes, those of the outputs too.
    """
    require(values.dtype == FP8, f"the weight is {values.dtype}, not {FP8}")
    require_contiguous(weight=values, scales=scales)
    num_outputs, num_inputs = values.shape
    size: tuple[int, ...] = (num_outputs,)
    if block_outputs:
        size = (ceil_div(num_outputs, block_outputs), ceil_div(num_inputs, GROUP))
    require(scales.shape == size, f"scales have shape {tuple(scales.shape)}, not {size}")
    require(scales.dtype == torch.float32, f"scales are {scales.dtype}, not float32")
    require(
        num_outputs % 16 == 0 and num_inputs % 16 == 0,
        f"{num_outputs} outputs and {num_inputs} inputs: 16 does not divide both",
    )


def check_product(x: Tensor, values: Tensor, fusion: Fusion, width_out: int) -> None:
    """Raise KernelInputError for shapes that do not fit together."""
    require(values.shape[1] == x.shape[1], f"x is {x.shape[1]} wide, weight {values.shape[1]}")
    fusion.check(x.shape[0], values.shape[0], width_out)
    require_contiguous(x=x)


def check_scales(
    x: QuantizedRows,
    values: Tensor,
    scales: Tensor,
    block_outputs: int,
    step: int | None,
) -> None:
    """Raise KernelInputError for scales of other blocks than a step of the kernel has, if told."""
    if not block_outputs:
        require(x.scales.dim() == scales.dim() == 1, "scales of groups without blocks of weights")
        return
    num_groups = ceil_div(values.shape[1], GROUP)
    blocks = (ceil_div(values.shape[0], block_outputs), num_groups)
    require(scales.shape == blocks, f"scales of shape {tuple(scales.shape)}, blocks are {blocks}")
    rows = (x.values.shape[0], num_groups)
    require(x.scales.shape == rows, f"x has scales {tuple(x.scales.shape)}, not {rows}")
    require_contiguous(scales=scales)
    require(x.scales.stride(0) == 1, "scales of a group are not side by side")
    require(step is None or step == GROUP, f"a step of blocks has {GROUP} columns")


def takes_blocks(device: torch.device, out_dtype: torch.dtype, block_outputs: int) -> bool:
    """Say whether a device has kernels over blocks whose warps take turns, and a weight fits."""
    lie_in_blocks = block_outputs > 0 and block_outputs % GROUP == 0
    return is_hopper(device) and out_dtype.itemsize == 2 and lie_in_blocks
