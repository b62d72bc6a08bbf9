"""Paged attention in plain torch: for any device, and for a CPU without a compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tokenbus.engine.attention.page_write import write_pages
from tokenbus.engine.attention.torch_plan import (
    DecodeBucket,
    PrefillSpan,
    block_mask,
    plan_of,
)

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.interfaces import ForwardContext
    from tokenbus.engine.kv_cache import AttentionSpec

# Queries attended at once in a prefill: 128 keep the scores of 9 heads and 500 keys near the
# size of L2, and took 1.8 ms for 512 tokens against 3.8 with scaled_dot_product_attention.
BLOCK_QUERIES = 128


class TorchAttention:
    """Attend by two batched matmuls over gathered pages.

    Whole pages are gathered as rows of [P * Hkv, S * D], which copies S * D values at a time and
    lays K out as [n * Hkv, L, D], ready for one batched matmul per bucket of sequences of similar
    length. On 2 cores, 32 sequences of 192 tokens, 9:3 heads of 64, bf16: 230 us per layer against
    425 with scaled_dot_product_attention and 340 for page-wise matmuls without the gather.
    What lies in a page beyond its sequence's last token never reaches a result.
    The gathered copies live in two buffers that all layers and passes reuse: fresh memory would
    cost page faults in every layer.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, ctx: ForwardContext
    ) -> Tensor:
        """Store k, v of this pass in their slots, then attend causally over the pages."""
        k_pages, v_pages = write_pages(ctx, spec, k, v)
        k_rows = k_pages.view(-1, ctx.kv.page_size * spec.head_dim)
        v_rows = v_pages.view(-1, ctx.kv.page_size * spec.head_dim)
        plan = plan_of(ctx, spec)
        if plan.in_token_order:
            keys, values = self._gather(k_rows, v_rows, plan.buckets[0].page_rows)
            return _decode(q, keys, values, spec, plan.buckets[0])
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for bucket in plan.buckets:
            keys, values = self._gather(k_rows, v_rows, bucket.page_rows)
            picked = q.index_select(0, bucket.token_idx)
            out.index_copy_(0, bucket.token_idx, _decode(picked, keys, values, spec, bucket))
        for span in plan.spans:
            keys, values = self._gather(k_rows, v_rows, span.page_rows)
            _prefill(q, keys, values, spec, span, ctx, out)
        return out

    def _gather(self, k_rows: Tensor, v_rows: Tensor, page_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Copy rows of K and V, [len(page_rows), S * D] each, valid until the next gather."""
        keys = self._buffer("keys", k_rows, page_rows.shape[0])
        values = self._buffer("values", v_rows, page_rows.shape[0])
        torch.index_select(k_rows, 0, page_rows, out=keys)
        torch.index_select(v_rows, 0, page_rows, out=values)
        return keys, values

    def _buffer(self, name: str, rows: Tensor, num_rows: int) -> Tensor:
        key, size = (name, rows.dtype, rows.device), num_rows * rows.shape[1]
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            # Under inference mode it could not be written to outside of it.
            with torch.inference_mode(mode=False):
                buffer = torch.empty(size, dtype=rows.dtype, device=rows.device)
            self._buffers[key] = buffer
        return buffer[:size].view(num_rows, rows.shape[1])


def _decode(
    q: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec, bucket: DecodeBucket
) -> Tensor:
    """Attend one query per sequence, q [n, Hq, D] -> [n, Hq, D]."""
    num_seqs, num_heads, dim = q.shape
    batch = num_seqs * spec.num_kv_heads
    group = num_heads // spec.num_kv_heads
    keys = keys.view(batch, bucket.num_keys, dim)
    # A NaN left by an earlier owner of the page would survive its zero weight.
    values.view(-1, dim).index_fill_(0, bucket.tail_rows, 0.0)
    scores = torch.bmm(q.reshape(batch, group, dim), keys.transpose(1, 2))
    scores = scores.view(num_seqs, spec.num_kv_heads, group, bucket.num_keys)
    # Filled, not added to: a NaN in a key would survive an added -inf.
    scores = _scaled(scores, bucket.no_bias, spec).masked_fill_(bucket.hidden, -torch.inf)
    weights = torch.softmax(scores, -1).to(q.dtype).view(batch, group, bucket.num_keys)
    return torch.bmm(weights, values.view(batch, bucket.num_keys, dim)).view(q.shape)


def _prefill(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    spec: AttentionSpec,
    span: PrefillSpan,
    ctx: ForwardContext,
    out: Tensor,
) -> None:
    """Attend the queries of one sequence block by block, each over the keys it can see."""
    heads, dim = spec.num_kv_heads, spec.head_dim
    group = spec.num_heads // heads
    keys, values = keys.view(heads, -1, dim), values.view(heads, -1, dim)
    grouped = q.view(-1, heads, group, dim)
    grouped_out = out.view(-1, heads, group, dim)
    start, position = span.start, span.first_position
    while start < span.stop:
        size = min(BLOCK_QUERIES, span.stop - start)
        first = 0 if spec.sliding_window is None else max(0, position + 1 - spec.sliding_window)
        low, high = max(first - span.first_key, 0), position + size - span.first_key
        queries = grouped[start : start + size].permute(1, 2, 0, 3)
        queries = queries.reshape(heads, group * size, dim)
        scores = torch.bmm(queries, keys[:, low:high].transpose(1, 2))
        mask = block_mask(ctx, size, high - low, spec.sliding_window, q.device)
        scores = _scaled(scores.view(heads, group, size, high - low), mask, spec)
        weights = torch.softmax(scores, -1).to(q.dtype)
        block = torch.bmm(weights.view(heads, group * size, high - low), values[:, low:high])
        grouped_out[start : start + size].copy_(
            block.view(heads, group, size, dim).permute(2, 0, 1, 3)
        )
        start, position = start + size, position + size


def _scaled(scores: Tensor, bias: Tensor, spec: AttentionSpec) -> Tensor:
    """Return raw scores scaled, capped and with `bias` (float32) added, in float32."""
    if spec.softcap is None:
        return torch.add(bias, scores, alpha=spec.scale)
    capped = torch.tanh_(scores.float() * (spec.scale / spec.softcap)).mul_(spec.softcap)
    return capped.add_(bias)
