"""The write of a pass's keys and values into pages, by plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.interfaces import ForwardContext
    from tokenbus.engine.kv_cache import AttentionSpec


def write_pages(
    ctx: ForwardContext, spec: AttentionSpec, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """Store k and v, [T, Hkv, D], in the slots of this pass's tokens.

    Returns: the layer's pages of keys and of values, [P, Hkv, S, D].
    """
    k_pages, v_pages = ctx.kv.k[spec.layer_idx], ctx.kv.v[spec.layer_idx]
    rows = _slot_rows(ctx, spec.num_kv_heads)
    k_pages.view(-1, spec.head_dim).index_copy_(0, rows, k.reshape(-1, spec.head_dim))
    v_pages.view(-1, spec.head_dim).index_copy_(0, rows, v.reshape(-1, spec.head_dim))
    return k_pages, v_pages


def _slot_rows(ctx: ForwardContext, num_kv_heads: int) -> Tensor:
    """Return the rows [T * Hkv] of a cache viewed as [P * Hkv * S, D] that the pass writes."""
    key = ("slot_rows", num_kv_heads)
    rows: Tensor | None = ctx.memo.get(key)
    if rows is None:
        size = ctx.kv.page_size
        page, offset = ctx.slot_mapping // size, ctx.slot_mapping % size
        heads = torch.arange(num_kv_heads, device=page.device)
        rows = ((page[:, None] * num_kv_heads + heads) * size + offset[:, None]).view(-1)
        ctx.memo[key] = rows
    return rows
