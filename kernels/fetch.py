"""Weights fetched into the L2 cache while memory has nothing else to do."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.launch import supports_dependent_launch

if TYPE_CHECKING:
    from torch import Tensor

# Bytes of a weight's halves that are fetched, each: memory has so much time while one row attends.
FOLLOWING_BYTES = 0
# Bytes of a line of the L2 cache.
_LINE = tl.constexpr(128)


@triton.jit
def fetch_line(address):
    """Ask for 128 bytes at each address to be brought to the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [address.to(tl.int64, bitcast=True)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def fetch_share(values, program, num_programs, NUM_BYTES: tl.constexpr, CHUNK: tl.constexpr):
    """Ask for this program's share of the first NUM_BYTES bytes at `values`, CHUNK lines a time.

    values: a pointer to numbers of one byte. Nothing waits for what is fetched.
    """
    LINES: tl.constexpr = NUM_BYTES // _LINE
    for first in range(program * CHUNK, LINES, num_programs * CHUNK):
        line = tl.minimum(first + tl.arange(0, CHUNK), LINES - 1)
        fetch_line(values + line.to(tl.int64) * _LINE)


def following_halves(weight: Tensor | None) -> tuple[tuple[Tensor, Tensor] | None, int]:
    """Return both halves of a weight's rows as bytes, and how many of each are to be fetched."""
    if weight is None or not FOLLOWING_BYTES or not supports_dependent_launch(weight.device):
        return None, 0
    first, second = weight.view(torch.uint8).flatten().chunk(2)
    num_bytes = min(FOLLOWING_BYTES, first.numel()) // 128 * 128
    return (first, second), num_bytes
