"""The inputs of a decode step in one launch, from the rows that take part and their positions."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.launch import next_power_of_2, require, require_contiguous

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK_PAGES = 128


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """What a decode step of N rows reads.

    token_ids, positions, slots, drawn_at: [N] int64: the token to compute and its place in the
    text, its slot in the pages, and which of the drawn tokens the step draws. context_lens: [N]
    int32, 0 for padding. block_table: [N, max_pages] int32, entries past a row's last page are of
    no meaning.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    drawn_at: Tensor
    context_lens: Tensor
    block_table: Tensor


@triton.jit(do_not_specialize_on_alignment=["rows", "positions"])
def _decode_inputs_kernel(
    rows, positions, tables, last_tokens, num_prompts, token_ids, safe_positions, slots, drawn_at,
    context_lens, block_table, max_pages, S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + index)
    position = tl.load(positions + index)
    safe = tl.maximum(position, 0)
    source = tables + row * max_pages
    page = tl.load(source + safe // S).to(tl.int64)
    tl.store(token_ids + index, tl.load(last_tokens + row))
    tl.store(safe_positions + index, safe)
    tl.store(slots + index, page * S + safe % S)
    tl.store(drawn_at + index, position + 1 - tl.load(num_prompts + row))
    tl.store(context_lens + index, (position + 1).to(tl.int32))
    num_pages = (safe // S + 1).to(tl.int32)
    for first in range(0, num_pages, BLOCK):
        offs = first + tl.arange(0, BLOCK)
        mask = offs < num_pages
        pages = tl.load(source + offs, mask=mask, other=0)
        tl.store(block_table + index * max_pages + offs, pages, mask=mask)


def decode_inputs(
    rows: Tensor,
    positions: Tensor,
    *,
    tables: Tensor,
    last_tokens: Tensor,
    num_prompts: Tensor,
    page_size: int,
    block_table: Tensor,
) -> DecodeInputs:
    """Gather the inputs of one token per row.

    Args:
        rows: [N] int64, which rows take part; positions: [N] int64 of the token to compute, -1 for
            padding, which computes position 0 of its row.
        tables: [R, max_pages] int32, pages of every row; last_tokens, num_prompts: [R] int64.
        block_table: [N, max_pages] int32, overwritten as far as a row has pages.
    Raises: KernelInputError on other shapes.
    """
    num_rows, max_pages = block_table.shape
    require_contiguous(
        rows=rows, positions=positions, tables=tables, last_tokens=last_tokens,
        num_prompts=num_prompts, block_table=block_table,
    )  # fmt: skip
    require(rows.shape == positions.shape == (num_rows,), f"{num_rows} rows in the block table")
    require(tables.shape[1] == max_pages, f"tables of {tables.shape[1]} pages, not {max_pages}")
    require(next_power_of_2(page_size) == page_size, f"page size {page_size}")
    token_ids, safe, slots, drawn_at = (torch.empty_like(positions) for _ in range(4))
    context_lens = torch.empty_like(positions, dtype=torch.int32)
    if num_rows:
        _decode_inputs_kernel[(num_rows,)](
            rows, positions, tables, last_tokens, num_prompts, token_ids, safe, slots, drawn_at,
            context_lens, block_table, max_pages, S=page_size, BLOCK=_BLOCK_PAGES, num_warps=1,
        )  # fmt: skip
    return DecodeInputs(token_ids, safe, slots, drawn_at, context_lens, block_table)
