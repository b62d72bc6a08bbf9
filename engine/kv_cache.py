"""The pages' storage: one K and one V tensor per layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.engine.interfaces import AttentionSpec


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
