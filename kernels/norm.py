"""Residual add and RMSNorm in one pass over the row."""

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

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def _add_rms_norm_kernel(
    x, residual, weight, normed, added, eps, H: tl.constexpr, BLOCK_H: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, ADD_ONE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    release_successor(PDL)
    row = tl.program_id(0).to(tl.int64) * H
    offs = tl.arange(0, BLOCK_H)
    mask = offs < H
    w = tl.load(weight + offs, mask=mask, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    value = tl.load(x + row + offs, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(residual + row + offs, mask=mask, other=0.0).to(tl.float32)
        tl.store(added + row + offs, value, mask=mask)
    if ADD_ONE:
        w += 1.0
    scale = tl.rsqrt(tl.sum(value * value) / H + eps)
    tl.store(normed + row + offs, (value * scale * w).to(normed.dtype.element_ty), mask=mask)


def add_rms_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    *,
    add_one: bool = False,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (rms_norm(x + residual), x + residual); without a residual the sum is x itself.

    Args:
        x, residual: [T, H], contiguous, each of its own dtype; weight: [H], applied as w or 1 + w.
        dtype: of the normed rows, that of x unless given.
    Returns: two [T, H] tensors; squares are summed in fp32. The sum is fp32, for it is added to
        in every layer, and one more rounding each time is most of what bf16 costs.
    Raises: KernelInputError if shapes or layouts differ. Twin: reference.rms_norm.
    """
    num_tokens, width = x.shape
    require_contiguous(x=x, residual=residual, weight=weight)
    require(residual is None or residual.shape == x.shape, "residual and x differ in shape")
    require(weight.shape == (width,), f"weight has shape {tuple(weight.shape)}, x is {width} wide")
    normed = torch.empty_like(x, dtype=dtype)
    added = x if residual is None else torch.empty_like(x, dtype=torch.float32)
    if num_tokens == 0:
        return normed, added
    block = next_power_of_2(width)
    _add_rms_norm_kernel[(num_tokens,)](
        x,
        residual,
        weight,
        normed,
        added,
        eps,
        H=width,
        BLOCK_H=block,
        HAS_RESIDUAL=residual is not None,
        ADD_ONE=add_one,
        num_warps=min(16, max(1, block // 256)),
        **dependent_launch(x.device),
    )
    return normed, added


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    add_one: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Normalise the rows of x, [T, H]; see `add_rms_norm`."""
    return add_rms_norm(x, None, weight, eps, add_one=add_one, dtype=dtype)[0]
