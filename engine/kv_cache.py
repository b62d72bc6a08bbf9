"""Pages of keys and values: the shape of a layer's attention, and one K and one V tensor each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


# The dtype of pages that are rounded.
FP8_PAGES = torch.float8_e4m3fn


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """The shape of one layer's attention.

    `sliding_window` counts keys visible to a query, itself included (None = all).
    `softcap` bounds scores by softcap * tanh(score / softcap) before the mask (None = off).
    """

    layer_idx: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int | None = None
    softcap: float | None = None


class KVCache:
    """K and V pages of every layer, [P, Hkv, S, D], page 0 being scratch.

    A K tile of one page and head is one contiguous block, so a kernel needs one page id per tile.
    Pages of FP8 have a scale per token and head beside them, [P, Hkv, S] float32, so that no
    number of a page depends on when its neighbours came; `k_scales` and `v_scales` are empty else.
    Their V is [P, Hkv, D, S]: a product in FP8 wants the tokens that it sums innermost. No byte of
    theirs is ever NaN, what broke a token is in its scales: kernels read whole tiles of them.
    """

    def __init__(
        self,
        specs: Sequence[AttentionSpec],
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.dtype = dtype
        self.k: list[torch.Tensor] = []
        self.v: list[torch.Tensor] = []
        self.k_scales: list[torch.Tensor] = []
        self.v_scales: list[torch.Tensor] = []
        for spec in specs:
            shape = (num_pages, spec.num_kv_heads, page_size, spec.head_dim)
            self.k.append(torch.zeros(shape, dtype=dtype, device=device))
            v = torch.zeros(shape, dtype=dtype, device=device)
            self.v.append(v.view(*shape[:2], spec.head_dim, page_size) if dtype == FP8_PAGES else v)
            if dtype == FP8_PAGES:
                self.k_scales.append(torch.zeros(shape[:3], device=device))
                self.v_scales.append(torch.zeros(shape[:3], device=device))

    def scales(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """Return the scales of a layer's K and V pages, [P, Hkv, S] float32, None without any."""
        if not self.k_scales:
            return None, None
        return self.k_scales[layer_idx], self.v_scales[layer_idx]

    @staticmethod
    def page_bytes(specs: Sequence[AttentionSpec], page_size: int, dtype: torch.dtype) -> int:
        """Bytes that one page takes over all layers, K and V together."""
        scale_bytes = torch.float32.itemsize if dtype == FP8_PAGES else 0
        per_token = sum(
            2 * spec.num_kv_heads * (spec.head_dim * dtype.itemsize + scale_bytes) for spec in specs
        )
        return per_token * page_size
