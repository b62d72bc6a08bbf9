"""Scales of rounded pages: keys and values in FP8, a scale per token and head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tokenbus.kernels.launch import require, require_contiguous
from tokenbus.kernels.quantize import FP8

if TYPE_CHECKING:
    from torch import Tensor


def check_page_dtypes(
    dtype: torch.dtype,
    k_pages: Tensor,
    v_pages: Tensor,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
) -> None:
    """Accept pages [P, Hkv, S, D] of `dtype` without scales, or of FP8 with them, [P, Hkv, S].

    Raises: KernelInputError for anything else.
    """
    require(k_pages.dtype == v_pages.dtype, f"K is {k_pages.dtype}, V is {v_pages.dtype}")
    if k_scales is None or v_scales is None:
        require(k_scales is None and v_scales is None, "scales of K and V come together")
        require(k_pages.dtype == dtype, f"q is {dtype}, pages are {k_pages.dtype}")
        return
    require(k_pages.dtype == FP8, f"pages with scales are {k_pages.dtype}, not {FP8}")
    require_contiguous(k_scales=k_scales, v_scales=v_scales)
    for scales in (k_scales, v_scales):
        require(scales.shape == k_pages.shape[:3], f"scales have shape {tuple(scales.shape)}")
        require(scales.dtype == torch.float32, f"scales are {scales.dtype}")
