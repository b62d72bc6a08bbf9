"""Pages of keys and values: the shape of a layer's attention, and one K and one V tensor each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


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
        for spec in specs:
            shape = (num_pages, spec.num_kv_heads, page_size, spec.head_dim)
            self.k.append(torch.zeros(shape, dtype=dtype, device=device))
            self.v.append(torch.zeros(shape, dtype=dtype, device=device))

    @staticmethod
    def page_bytes(specs: Sequence[AttentionSpec], page_size: int, dtype: torch.dtype) -> int:
        """Bytes that one page takes over all layers, K and V together."""
        per_token = sum(2 * spec.num_kv_heads * spec.head_dim for spec in specs)
        return per_token * page_size * dtype.itemsize
