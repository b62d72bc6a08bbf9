"""The inputs of a decode step in one launch, and what it leaves for the next one in another."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    next_power_of_2,
    release_successor,
    require,
    require_contiguous,
    wait_for_inputs,
)

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK_PAGES, _BLOCK_ROWS = 128, 128


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
    context_lens, block_table, max_pages, S: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    release_successor(PDL)
    index = tl.program_id(0).to(tl.int64)
    wait_for_inputs(PDL)
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
            **dependent_launch(rows.device),
        )  # fmt: skip
    return DecodeInputs(token_ids, safe, slots, drawn_at, context_lens, block_table)


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["rows"])
def _keep_tokens_kernel(last_tokens, rows, token_ids, num_rows, BLOCK: tl.constexpr,
                        PDL: tl.constexpr):  # fmt: skip
    release_successor(PDL)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = index < num_rows
    wait_for_inputs(PDL)
    row = tl.load(rows + index, mask=there, other=0)
    token = tl.load(token_ids + index, mask=there, other=0)
    tl.store(last_tokens + row, tl.maximum(token, 0), mask=there)


def keep_tokens(last_tokens: Tensor, rows: Tensor, token_ids: Tensor) -> None:
    """Write what was drawn for rows where their next step looks for it, 0 where nothing was.

    Args:
        last_tokens: [R] int64, overwritten. rows, token_ids: [N] int64; ids below 0 are no tokens.
            A row that comes several times gets one of its tokens.
    Raises: KernelInputError on other shapes. Twin: last_tokens.index_copy_ of clamped ids.
    """
    num_rows = rows.shape[0]
    require(token_ids.shape == (num_rows,), f"{tuple(token_ids.shape)} tokens, {num_rows} rows")
    require_contiguous(last_tokens=last_tokens, rows=rows, token_ids=token_ids)
    if num_rows:
        _keep_tokens_kernel[(ceil_div(num_rows, _BLOCK_ROWS),)](
            last_tokens, rows, token_ids, num_rows, BLOCK=_BLOCK_ROWS, num_warps=1,
            **dependent_launch(rows.device),
        )  # fmt: skip
