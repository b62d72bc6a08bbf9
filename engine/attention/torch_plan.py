"""Plans of paged attention in plain torch: which pages a pass reads, built once for all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.interfaces import ForwardContext
    from tokenbus.engine.kv_cache import AttentionSpec

# One more bucket costs about nine small ops, 45 us; 1,024 padded tokens cost about the same
# (2 x Zen 5, bf16, 3 KV heads of 64).
MAX_PADDING_TOKENS = 1024
# Gathered K and V of a bucket stay in cache up to here (3 MB each at 3 KV heads of 64 in bf16).
MAX_BUCKET_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class DecodeBucket:
    """Sequences with one query token each that are attended in one batch of L gathered keys.

    token_idx: [n] int64, their rows in T; page_rows: [n * Hkv * L / S] int64, rows of a cache
    viewed as [P * Hkv, S * D]; hidden: [n, 1, 1, L] bool, keys that are masked out; no_bias: [1]
    float32 zero; tail_rows: int64, rows of the gathered [n * Hkv * L, D] that hold no token of the
    sequence and are cleared.
    """

    token_idx: Tensor
    page_rows: Tensor
    hidden: Tensor
    no_bias: Tensor
    tail_rows: Tensor
    num_keys: int


@dataclass(frozen=True, slots=True)
class PrefillSpan:
    """One sequence with several query tokens: tokens [start, stop) of T at `first_position`.

    page_rows: as in DecodeBucket, for one sequence; `first_key` is the position of its first key.
    """

    start: int
    stop: int
    first_position: int
    first_key: int
    page_rows: Tensor


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Everything a pass reads, for layers with the same number of KV heads and the same window."""

    buckets: tuple[DecodeBucket, ...]
    spans: tuple[PrefillSpan, ...]
    in_token_order: bool


def plan_of(ctx: ForwardContext, spec: AttentionSpec) -> AttentionPlan:
    """Return the plan of this pass for layers shaped like `spec`, building it on first use."""
    key = ("torch_plan", spec.num_kv_heads, spec.sliding_window)
    plan: AttentionPlan | None = ctx.memo.get(key)
    if plan is None:
        plan = _build(ctx, spec)
        ctx.memo[key] = plan
    return plan


def block_mask(
    ctx: ForwardContext, num_queries: int, num_keys: int, window: int | None, device: torch.device
) -> Tensor:
    """Return the additive mask [num_queries, num_keys] of queries that are the last of the keys."""
    key = ("torch_mask", num_queries, num_keys, window)
    mask: Tensor | None = ctx.memo.get(key)
    if mask is None:
        distance = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
        distance = distance - torch.arange(num_keys, device=device)
        hidden = distance < 0
        if window is not None:
            hidden |= distance >= window
        mask = torch.zeros(num_queries, num_keys, device=device).masked_fill_(hidden, -torch.inf)
        ctx.memo[key] = mask
    return mask


def _build(ctx: ForwardContext, spec: AttentionSpec) -> AttentionPlan:
    size = ctx.kv.page_size
    starts = [0]
    for query_len in ctx.query_lens:
        starts.append(starts[-1] + query_len)
    decodes: list[tuple[int, int, int]] = []  # (pages read, first page, sequence)
    spans: list[PrefillSpan] = []
    for seq_idx, (query_len, context_len) in enumerate(
        zip(ctx.query_lens, ctx.context_lens_host, strict=True)
    ):
        first_position = context_len - query_len
        window = spec.sliding_window or context_len
        first_page = max(0, first_position + 1 - window) // size
        num_pages = -(-context_len // size)
        if query_len == 1:
            decodes.append((num_pages - first_page, first_page, seq_idx))
        elif query_len > 1:
            pages = ctx.block_table[seq_idx, first_page:num_pages]
            spans.append(
                PrefillSpan(
                    starts[seq_idx],
                    starts[seq_idx + 1],
                    first_position,
                    first_page * size,
                    _page_rows(pages[None], spec.num_kv_heads),
                )
            )
    groups = _group(decodes, size)
    buckets = tuple(_bucket(ctx, spec, group, starts) for group in groups)
    in_order = len(groups) == 1 and not spans and len(decodes) == len(ctx.query_lens)
    return AttentionPlan(buckets, tuple(spans), in_order)


def _group(decodes: list[tuple[int, int, int]], size: int) -> list[list[tuple[int, int, int]]]:
    """Split decodes into batches of similar length; a single batch keeps the order of T."""
    groups: list[list[tuple[int, int, int]]] = []
    longest = padding = 0
    for item in sorted(decodes, key=lambda item: (-item[0], item[2])):
        extra = (longest - item[0]) * size
        if (
            not groups
            or padding + extra > MAX_PADDING_TOKENS
            or (len(groups[-1]) + 1) * longest * size > MAX_BUCKET_TOKENS
        ):
            groups.append([])
            longest, padding, extra = item[0], 0, 0
        groups[-1].append(item)
        padding += extra
    for group in groups:
        group.sort(key=lambda item: item[2])
    return groups


def _bucket(
    ctx: ForwardContext,
    spec: AttentionSpec,
    group: list[tuple[int, int, int]],
    starts: list[int],
) -> DecodeBucket:
    size, heads, device = ctx.kv.page_size, spec.num_kv_heads, ctx.block_table.device
    num_pages = max(item[0] for item in group)
    num_keys = num_pages * size
    counts, first_pages, seqs = (torch.tensor(column) for column in zip(*group, strict=True))
    # Padding repeats the last page, so that no page of another sequence is ever touched.
    columns = torch.minimum(torch.arange(num_pages), counts[:, None] - 1) + first_pages[:, None]
    pages = ctx.block_table[seqs.to(device)[:, None], columns.to(device)]

    lens = torch.tensor([ctx.context_lens_host[seq] for _, _, seq in group])
    position = torch.arange(num_keys) + (first_pages * size)[:, None]
    beyond = position >= lens[:, None]
    hidden = beyond
    if spec.sliding_window is not None:
        hidden = beyond | (position < (lens - spec.sliding_window)[:, None])
    tail = beyond[:, None, :].expand(-1, heads, -1).reshape(-1).nonzero().view(-1)
    return DecodeBucket(
        torch.tensor([starts[seq] for _, _, seq in group]).to(device),
        _page_rows(pages, heads),
        hidden[:, None, None, :].to(device),
        torch.zeros(1, device=device),
        tail.to(device),
        num_keys,
    )


def _page_rows(pages: Tensor, num_kv_heads: int) -> Tensor:
    """Return rows of [P * Hkv, S * D] that lay the pages [n, m] out as [n, Hkv, m]."""
    heads = torch.arange(num_kv_heads, device=pages.device)
    return (pages.long()[:, None, :] * num_kv_heads + heads[:, None]).reshape(-1)
