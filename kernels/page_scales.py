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

    Pages of FP8 hold values as [P, Hkv, D, S]: a product in FP8 wants what it sums innermost.

    Raises: KernelInputError for anything else.
    """
    require(k_pages.dtype == v_pages.dtype, f"K is {k_pages.dtype}, V is {v_pages.dtype}")
    if k_scales is None or v_scales is None:
        require(k_scales is None and v_scales is None, "scales of K and V come together")
        require(k_pages.dtype == dtype, f"q is {dtype}, pages are {k_pages.dtype}")
        require(k_pages.shape == v_pages.shape, f"K {k_pages.shape} and V {v_pages.shape} differ")
        return
    require(k_pages.dtype == FP8, f"pages with scales are {k_pages.dtype}, not {FP8}")
    num_pages, num_kv_heads, page_size, head_dim = k_pages.shape
    turned = (num_pages, num_kv_heads, head_dim, page_size)
    require(v_pages.shape == turned, f"K {k_pages.shape}, V {v_pages.shape}, not {turned}")
    require_contiguous(k_scales=k_scales, v_scales=v_scales)
    for scales in (k_scales, v_scales):
        require(scales.shape == k_pages.shape[:3], f"scales have shape {tuple(scales.shape)}")
        require(scales.dtype == torch.float32, f"scales are {scales.dtype}")
