"""Batches: the tensors of a forward pass, made from a plan."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch

from tokenbus.engine.interfaces import ForwardContext

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.execution.rows import RowState
    from tokenbus.engine.kv_cache import KVCache
    from tokenbus.engine.scheduling.plan import PrefillChunk
    from tokenbus.engine.scheduling.sequence import Sequence


def _rows_of(seqs: list[Sequence]) -> list[int]:
    return [seq.row for seq in seqs if seq.row is not None]


def _ends(chunk: PrefillChunk) -> range:
    """Return where the context of each token of a chunk ends."""
    return range(chunk.start + 1, chunk.length + 1)


def step_batch(
    prompts: list[PrefillChunk],
    answers: list[PrefillChunk],
    seqs: list[Sequence],
    rows: RowState,
    kv: KVCache,
) -> tuple[Tensor, ForwardContext]:
    """Return token ids [T] and the context of chunks, then of one token per decoding sequence.

    The tokens of `answers` decode too: each is a sequence of its own, as long as it reaches.
    """
    chunks = [*prompts, *answers]
    decode_rows = _rows_of(seqs)
    owned = [(chunk.seq.row or 0, end) for chunk in answers for end in _ends(chunk)]
    num_decode = len(owned) + len(seqs)
    query_lens = [*(chunk.num_tokens for chunk in prompts), *[1] * num_decode]
    context_lens = [
        *(chunk.length for chunk in prompts),
        *(end for _, end in owned),
        *(seq.num_computed for seq in seqs),
    ]
    num_tokens = sum(query_lens)
    num_known = num_tokens - len(seqs)
    host = np.empty(num_known + 2 * num_tokens, np.int64)
    ids_host, positions, owners = np.split(host, [num_known, num_known + num_tokens])
    first = 0
    for chunk in chunks:
        end = first + chunk.num_tokens
        ids_host[first:end] = chunk.token_ids()
        positions[first:end] = np.arange(chunk.start, chunk.length)
        owners[first:end] = chunk.seq.row or 0
        first = end
    positions[num_known:] = [seq.num_computed - 1 for seq in seqs]
    owners[num_known:] = decode_rows
    staged = rows.to_device(host)
    ids, pos, own = torch.split(staged, [num_known, num_tokens, num_tokens])
    if seqs:
        ids = torch.cat((ids, rows.last_token[own[num_known:]]))
    prompt_rows = _rows_of([chunk.seq for chunk in prompts])
    row_ids = rows.to_device([*prompt_rows, *(row for row, _ in owned), *decode_rows])
    ctx = _context(
        rows, kv, pos, own, row_ids, query_lens, context_lens, [0, *accumulate(query_lens)]
    )
    ctx.num_decode = num_decode
    ctx.reads_cache = any(chunk.start for chunk in prompts)
    return ids, ctx


def decode_batch(
    seqs: list[Sequence], rows: RowState, kv: KVCache
) -> tuple[Tensor, Tensor, ForwardContext]:
    """Return token ids [N], rows [N] and the context of one token per sequence."""
    context_lens = [seq.num_computed for seq in seqs]
    num = len(seqs)
    staged = rows.to_device([*_rows_of(seqs), *(length - 1 for length in context_lens)])
    row_ids, positions = staged.view(2, num)
    ctx = _context(
        rows, kv, positions, row_ids, row_ids, [1] * num, context_lens, list(range(num + 1))
    )
    ctx.num_decode = num
    return rows.last_token[row_ids], row_ids, ctx


def _context(
    rows: RowState,
    kv: KVCache,
    positions: Tensor,
    owners: Tensor,
    row_ids: Tensor,
    query_lens: list[int],
    context_lens: list[int],
    offsets: list[int],
) -> ForwardContext:
    page_size = kv.page_size
    page_ids = rows.block_table[owners, positions // page_size].to(torch.int64)
    num_pages = rows.table_width(-(-max(context_lens) // page_size))
    return ForwardContext(
        kv=kv,
        positions=positions,
        slot_mapping=page_ids * page_size + positions % page_size,
        block_table=rows.block_table[row_ids, :num_pages],
        context_lens=rows.to_device(context_lens, torch.int32),
        cu_seqlens_q=rows.to_device(offsets, torch.int32),
        query_lens=query_lens,
        context_lens_host=context_lens,
    )
