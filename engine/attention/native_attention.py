"""Paged attention on a CPU by compiled kernels, which read pages where they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tokenbus.engine.attention.torch_plan import slot_rows
from tokenbus.kernels.cpu.native import BatchArgs, NativeLibrary, ShapeArgs

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.forward import AttentionSpec, ForwardContext


class NativeAttention:
    """Attend by the compiled kernels; what lies beyond a sequence's last token is never read."""

    def __init__(self, library: NativeLibrary) -> None:
        self.library = library

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, ctx: ForwardContext
    ) -> Tensor:
        """Store k, v of this pass in their slots, then attend causally over the pages."""
        k_pages, v_pages = ctx.kv.k[spec.layer_idx], ctx.kv.v[spec.layer_idx]
        rows = slot_rows(ctx, spec.num_kv_heads)
        k_pages.view(-1, spec.head_dim).index_copy_(0, rows, k.reshape(-1, spec.head_dim))
        v_pages.view(-1, spec.head_dim).index_copy_(0, rows, v.reshape(-1, spec.head_dim))
        if q.stride()[1:] != (spec.head_dim, 1):
            q = q.contiguous()
        shape = shape_args(spec, ctx.kv.page_size)
        return self.library.attend(batch_args(ctx), shape, q, k_pages, v_pages)


def shape_args(spec: AttentionSpec, page_size: int) -> ShapeArgs:
    """Describe a layer's attention to the kernels."""
    return ShapeArgs(
        spec.num_heads, spec.num_kv_heads, spec.head_dim, page_size,
        spec.sliding_window or 0, spec.scale, spec.softcap or 0.0,
    )  # fmt: skip


def batch_args(ctx: ForwardContext) -> BatchArgs:
    """Describe a pass to the kernels; the context owns the memory."""
    args: BatchArgs | None = ctx.memo.get("native_batch")
    if args is None:
        table = ctx.block_table
        if table.stride(1) != 1:
            table = table.contiguous()
            ctx.memo["native_table"] = table
        args = BatchArgs(
            ctx.positions.shape[0], len(ctx.query_lens), table.stride(0), torch.get_num_threads(),
            ctx.positions.data_ptr(), ctx.slot_mapping.data_ptr(), table.data_ptr(),
            ctx.context_lens.data_ptr(), ctx.cu_seqlens_q.data_ptr(),
        )  # fmt: skip
        ctx.memo["native_batch"] = args
    return args
