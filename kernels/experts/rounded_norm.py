"""Residual add and RMSNorm before experts in FP8: rows for the router, and rounded ones."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.launch import (
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


@triton.jit
def _rounded_norm_kernel(
    x, residual, weight, normed, values, scales, added, eps, K: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    release_successor(PDL)
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    mask = offs < K
    place = row * K + offs
    w = tl.load(weight + offs, mask=mask, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(added + place, value, mask=mask)
    value = value * tl.rsqrt(tl.sum(value * value) / K + eps) * w
    value = value.to(normed.dtype.element_ty)
    tl.store(normed + place, value, mask=mask)
    exact = value.to(tl.float32)
    scale = scale_of(tl.max(tl.abs(exact)))
    tl.store(values + place, finite_number(exact / scale).to(tl.float8e4nv), mask=mask)
    tl.store(scales + row, scale + tl.sum(exact - exact))


def add_rms_norm_both(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, QuantizedRows, Tensor]:
    """Return rms_norm(x + residual), the same as `quantize_rows` rounds it, and x + residual.

    Args: x, residual: [T, K], contiguous, each of its own dtype; weight: [K].
    Returns: [T, K] in the dtype of x, in e4m3 with a scale per row, and float32.
    Raises: KernelInputError if shapes or layouts differ. Twin: reference.rms_norm.
    """
    num_rows, width = x.shape
    require_contiguous(x=x, residual=residual, weight=weight)
    require(residual.shape == x.shape, "residual and x differ in shape")
    require(weight.shape == (width,), f"weight has shape {tuple(weight.shape)}, x is {width} wide")
    normed, rows = torch.empty_like(x), QuantizedRows.empty(num_rows, width, x.device)
    added = torch.empty_like(x, dtype=torch.float32)
    if num_rows:
        block = next_power_of_2(width)
        _rounded_norm_kernel[(num_rows,)](
            x, residual, weight, normed, rows.values, rows.scales, added, eps, K=width, BLOCK=block,
            num_warps=min(16, max(1, block // 512)), **dependent_launch(x.device),
        )  # fmt: skip
    return normed, rows, added
