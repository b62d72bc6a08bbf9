"""Weights on their way into the L2 cache before the kernel that reads them is launched.

While attention or a router runs, memory has little to do. What a later kernel reads anyway is asked
for then by programs that are there, a piece for each of their threads, and nobody waits for it.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

# Pieces begin and end at multiples of so many bytes.
_PIECE = tl.constexpr(16)
# The L2 cache of an H200 has 50 MB, of which each half of the chip sees its own: what is fetched
# has to stay until it is read, beside what is read meanwhile.
_MAX_BYTES = 24_000_000


def fetchable(weight: Tensor | None, device_fetches: bool) -> tuple[Tensor | None, int]:
    """Return a weight and how many of its bytes to fetch, (None, 0) if it is better left alone."""
    if weight is None or not device_fetches or weight.nbytes > _MAX_BYTES:
        return None, 0
    if not weight.is_contiguous() or weight.data_ptr() % _PIECE.value:
        return None, 0
    return weight, weight.nbytes


@triton.jit
def fetch_ahead(memory, num_bytes, part, num_parts, LANES: tl.constexpr):
    """Ask for a part of `memory`, whose address 16 divides; LANES: threads of the program."""
    lane = part.to(tl.int64) * LANES + tl.arange(0, LANES)
    share = tl.cdiv(num_bytes, num_parts * LANES * _PIECE) * _PIECE
    first = lane * share
    size = tl.minimum(num_bytes - first, share) // _PIECE * _PIECE
    place = memory.to(tl.pointer_type(tl.uint8)) + first
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.gt.s32 p, $2, 0;"
        " @p cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0; }",
        "=r,l,r", [place.to(tl.int64, bitcast=True), size.to(tl.int32)], dtype=tl.int32,
        is_pure=False, pack=1,
    )  # fmt: skip
