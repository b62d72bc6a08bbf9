"""Embedding rows, gathered and scaled, and widened for the sums over layers."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    release_successor,
    require,
    require_contiguous,
    wait_for_inputs,
)

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def _embed_kernel(
    token_ids, table, out, scale, H: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    release_successor(PDL)
    row = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < H
    wait_for_inputs(PDL)
    token = tl.load(token_ids + row).to(tl.int64)
    value = tl.load(table + token * H + offs, mask=mask, other=0.0)
    # torch scales in the table's dtype; the product of two rounded numbers rounds once.
    tl.store(out + row * H + offs, (value.to(tl.float32) * scale).to(value.dtype), mask=mask)


@triton.jit(do_not_specialize=["size"])
def _widen_kernel(x, out, size, BLOCK: tl.constexpr, PDL: tl.constexpr):
    release_successor(PDL)
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    wait_for_inputs(PDL)
    value = tl.load(x + offs, mask=offs < size, other=0.0).to(tl.float32)
    tl.store(out + offs, value, mask=offs < size)


def widen(x: Tensor) -> Tensor:
    """x: contiguous -> the same in float32, in new memory, launched as embeddings are."""
    require_contiguous(x=x)
    out = torch.empty_like(x, dtype=torch.float32)
    if x.numel():
        _widen_kernel[(ceil_div(x.numel(), 1024),)](
            x, out, x.numel(), BLOCK=1024, num_warps=4, **dependent_launch(x.device),
        )  # fmt: skip
    return out


def embed(token_ids: Tensor, table: Tensor, scale: float = 1.0) -> Tensor:
    """Gather rows of the embedding table.

    Args: token_ids: [T] int32 or int64, each in [0, V); table: [V, H], contiguous.
    Returns: [T, H], dtype of table, times scale. Twin: table[token_ids] * scale.
    """
    require_contiguous(token_ids=token_ids, table=table)
    require(not token_ids.is_floating_point(), f"token_ids is {token_ids.dtype}")
    num_tokens, width = token_ids.shape[0], table.shape[1]
    out = table.new_empty(num_tokens, width)
    if num_tokens:
        _embed_kernel[(num_tokens, ceil_div(width, 1024))](
            token_ids, table, out, scale, H=width, BLOCK=1024, num_warps=4,
            **dependent_launch(table.device),
        )  # fmt: skip
    return out
