"""The list of what programs attend in a pass over prompts: tiles of tokens, longest first."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.launch import ceil_div, require, require_contiguous

if TYPE_CHECKING:
    from torch import Tensor

# Numbers of an item; the first item of a list is its head.
ITEM_SIZE = 8
# Tiles that a program describes, and compares at a time.
_BLOCK = 32


@triton.jit
def _describe(borders, lens, tile, num_tokens, num_sequences, TOKENS: tl.constexpr):
    """Return of tiles the sequence, its tokens, the position of the first, keys and context.

    Sequence n owns the tiles from borders[n] // TOKENS + n on: never fewer than it needs, so that
    their number follows from T and N alone. `num_sequences` stands for padding, without keys.
    """
    found = tl.zeros(tile.shape, tl.int32) - 1
    for start in range(0, num_sequences + 1, 64):
        n = start + tl.arange(0, 64)
        border = tl.load(borders + n, mask=n <= num_sequences, other=0)
        begin = tl.where(n <= num_sequences, border // TOKENS + n, 2**30)
        found += tl.sum((begin[None, :] <= tile[:, None]).to(tl.int32), axis=1)
    is_prompt = found < num_sequences
    first = tl.load(borders + found)
    last = tl.load(borders + found + 1, mask=is_prompt, other=num_tokens)
    context = tl.load(lens + found, mask=is_prompt, other=0)
    token = first + (tile - first // TOKENS - found) * TOKENS
    earliest = context - last + token
    keys = tl.where(is_prompt & (token < last), tl.minimum(earliest + TOKENS, context), 0)
    return found, token, tl.minimum(token + TOKENS, last), earliest, keys, context


@triton.jit(do_not_specialize=["num_tokens", "num_sequences", "tiles"])
def _items_kernel(
    borders, lens, items, num_tokens, num_sequences, tiles, TOKENS: tl.constexpr,
    BLOCK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Write BLOCK tiles where they stand in the order of their keys, and how many have tokens."""
    tile = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n, token, end, earliest, keys, context = _describe(
        borders, lens, tile, num_tokens, num_sequences, TOKENS
    )
    weight = tl.where(token < end, keys + 1, 0)
    rank = tl.zeros([BLOCK], tl.int32)
    live = tl.zeros([BLOCK], tl.int32)
    for start in range(0, tiles, BLOCK):
        other = start + tl.arange(0, BLOCK)
        _n, other_token, other_end, _e, other_keys, _c = _describe(
            borders, lens, other, num_tokens, num_sequences, TOKENS
        )
        has_tokens = (other_token < other_end) & (other < tiles)
        other_weight = tl.where(has_tokens, other_keys + 1, tl.where(other < tiles, 0, -1))[None, :]
        is_before = (other_weight == weight[:, None]) & (other[None, :] < tile[:, None])
        rank += tl.sum(((other_weight > weight[:, None]) | is_before).to(tl.int32), axis=1)
        live += has_tokens.to(tl.int32)
    if tl.program_id(0) == 0:
        tl.store(items, tl.sum(live))
    place = items + (1 + rank) * SIZE
    mask = tile < tiles
    tl.store(place, n, mask=mask)
    tl.store(place + 1, token, mask=mask)
    tl.store(place + 2, end, mask=mask)
    tl.store(place + 3, earliest, mask=mask)
    tl.store(place + 4, keys, mask=mask)
    tl.store(place + 5, context, mask=mask)


def prefill_items(
    cu_seqlens_q: Tensor, context_lens: Tensor, num_tokens: int, tile_tokens: int
) -> Tensor:
    """List the tiles of a pass: as many tokens of a sequence, or of padding, at most.

    Args:
        cu_seqlens_q: [N + 1] int32, borders of the sequences in T. context_lens: [N] int32, tokens
            of each, those of this pass included. num_tokens: T, of which those behind the last
            border are padding.
    Returns: [1 + tiles, 8] int32: first how many have tokens, then of each the sequence (N for
        padding), its first token and the one behind its last, the position of the first, how many
        keys its last token sees (0 for padding) and the context; those of most keys first, those
        without tokens last.
    """
    num_sequences = context_lens.shape[0]
    require_contiguous(cu_seqlens_q=cu_seqlens_q, context_lens=context_lens)
    for tensor in (cu_seqlens_q, context_lens):
        require(tensor.dtype == torch.int32, f"borders and lengths are int32, not {tensor.dtype}")
    require(cu_seqlens_q.shape[0] == num_sequences + 1, f"{cu_seqlens_q.shape[0]} borders")
    tiles = num_tokens // tile_tokens + num_sequences + 1
    items = context_lens.new_empty(1 + tiles, ITEM_SIZE)
    _items_kernel[(ceil_div(tiles, _BLOCK),)](
        cu_seqlens_q,
        context_lens,
        items,
        num_tokens,
        num_sequences,
        tiles,
        TOKENS=tile_tokens,
        BLOCK=_BLOCK,
        SIZE=ITEM_SIZE,
    )
    return items
