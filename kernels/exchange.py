"""Sums over ranks through memory of peers, with the residual and the norm behind them.

Every rank has a box: memory that the others write their parts into, over NVLink. A number in it
is there as soon as it is not `EMPTY`, a NaN that no arithmetic makes, so nothing else is signalled:
a rank writes, looks at its own box until all is there, sums in the order of the ranks and leaves
the place empty again.

A box has two sides. Ranks have to use them in turn: who writes to one side has got all of the
other, so its peers have read what they were sent on this one before, and emptied it.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

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

NUM_SIDES = 2
# All bits of an empty place.
EMPTY_BYTE = 0xFF
# Numbers of a program that need not see a whole row: 128 threads with 16 bytes each.
_PIECE = 1024


@dataclass(frozen=True, slots=True)
class Boxes:
    """The boxes of all ranks, as one of them sees them.

    addresses: [size] int64 on the device, of each rank's box in this process. A box has
        [NUM_SIDES, size - 1, place_bytes] bytes: on each side a place for every sender.
    owner: of the memory, which lives as long.
    """

    addresses: Tensor
    rank: int
    size: int
    place_bytes: int
    owner: object = None

    def holds(self, part: Tensor) -> bool:
        """Tell whether a part of this size fits a place."""
        return part.nbytes <= self.place_bytes


class Exchange(NamedTuple):
    """A sum over ranks: the boxes, and the side of them, not that of the exchange before it."""

    boxes: Boxes
    side: int


def arguments_of(
    among: Exchange | None, dtype: torch.dtype
) -> tuple[Tensor | None, int, dict[str, int]]:
    """Return what a kernel that sends numbers of `dtype` is given, and what it is compiled for."""
    if among is None:
        return None, 0, {"RANK": 0, "SIZE": 1, "PLACE": 0}
    boxes, side = among
    place = boxes.place_bytes // dtype.itemsize
    return boxes.addresses, side, {"RANK": boxes.rank, "SIZE": boxes.size, "PLACE": place}


@triton.jit
def _box_of(addresses, rank: tl.constexpr, dtype: tl.constexpr):
    return tl.multiple_of(tl.load(addresses + rank).to(tl.pointer_type(dtype)), 16)


@triton.jit
def _receive(place, mask):
    """Wait until all of a place is there, and leave it empty."""
    found = tl.load(place, mask=mask, other=0, volatile=True)
    while tl.max((found == -1).to(tl.int32)) == 1:
        found = tl.load(place, mask=mask, other=0, volatile=True)
    # Threads that have numbers in common have all seen them.
    tl.debug_barrier()
    tl.store(place, tl.full(found.shape, -1, found.dtype), mask=mask)
    return found


@triton.jit
def send(value, addresses, offset, mask, side, RANK: tl.constexpr, SIZE: tl.constexpr,
         PLACE: tl.constexpr):  # fmt: skip
    """Write numbers of a part, any shape, to all peers: at `offset` of places of PLACE numbers."""
    dtype: tl.constexpr = value.dtype
    first = side.to(tl.int64) * (SIZE - 1) * PLACE
    for peer in tl.static_range(SIZE):
        if peer != RANK:
            box = _box_of(addresses, peer, dtype)
            # A rank has no place in its own box.
            place = (RANK - 1 if peer < RANK else RANK) * PLACE
            tl.store(box + first + place + offset, value, mask=mask)


@triton.jit
def receive_sum(value, addresses, offset, mask, side, RANK: tl.constexpr, SIZE: tl.constexpr,
                PLACE: tl.constexpr):  # fmt: skip
    """Return the sum of numbers that were sent with what comes from all peers, in float32."""
    dtype: tl.constexpr = value.dtype
    bits: tl.constexpr = tl.int16 if dtype.primitive_bitwidth == 16 else tl.int32
    first = side.to(tl.int64) * (SIZE - 1) * PLACE
    own = _box_of(addresses, RANK, bits)
    total = tl.zeros(value.shape, tl.float32)
    for sender in tl.static_range(SIZE):
        if sender == RANK:
            # A choice between: a product would be added here as it was before it was rounded.
            total += tl.where(mask, value.to(tl.float32), 0.0)
        else:
            place = (sender - 1 if sender > RANK else sender) * PLACE
            found = _receive(own + first + place + offset, mask)
            total += found.to(dtype, bitcast=True).to(tl.float32)
    return total


@triton.jit(do_not_specialize=["side"])
def _exchange_kernel(
    part, addresses, side, residual, weight, out, added, eps, H: tl.constexpr,
    BLOCK_H: tl.constexpr, RANK: tl.constexpr, SIZE: tl.constexpr, PLACE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Sum a piece of a row over the ranks, add the residual, normalise what has to be whole."""
    release_successor(PDL)
    row = tl.program_id(0).to(tl.int64) * H
    cols = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = cols < H
    offs = row + cols
    if HAS_NORM:
        scale = tl.load(weight + cols, mask=mask, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    value = tl.load(part + offs, mask=mask, other=0.0)
    send(value, addresses, offs, mask, side, RANK, SIZE, PLACE)
    total = receive_sum(value, addresses, offs, mask, side, RANK, SIZE, PLACE)
    if HAS_RESIDUAL:
        total += tl.load(residual + offs, mask=mask, other=0.0).to(tl.float32)
        tl.store(added + offs, total, mask=mask)
    if HAS_NORM:
        total *= tl.rsqrt(tl.sum(total * total) / H + eps) * scale
    tl.store(out + offs, total.to(out.dtype.element_ty), mask=mask)


def exchange(
    part: Tensor,
    among: Exchange,
    residual: Tensor | None = None,
    added: Tensor | None = None,
    norm: tuple[Tensor, float] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the sum of all ranks' parts and the residual, normalised if there is a norm.

    Args:
        part: [T, H], contiguous, of 16 or 32 bits each; all ranks give parts of this shape.
        residual: [T, H], any dtype. added: [T, H] float32 to write the sum with it to, may be it.
        norm: the weight, [H], and eps of an RMS norm.
    Returns: [T, H], of `dtype` or that of part; the same bits on all ranks.
    Raises: KernelInputError on other shapes. Twin: reference.rms_norm over the sum in float32.
    """
    num_rows, width = part.shape
    addresses, side, options = arguments_of(among, part.dtype)
    weight, eps = norm or (None, 0.0)
    require_contiguous(part=part, residual=residual, added=added, norm=weight)
    require(part.element_size() in (2, 4), f"numbers of {part.dtype} are not exchanged")
    require(among.boxes.holds(part), f"{part.nbytes} bytes are more than a place has")
    require((residual is None) == (added is None), "a sum with a residual is written to added")
    for name, tensor in (("residual", residual), ("added", added)):
        require(tensor is None or tensor.shape == part.shape, f"{name} and part differ in shape")
    out = torch.empty_like(part, dtype=dtype)
    block = next_power_of_2(width) if norm else min(_PIECE, next_power_of_2(width))
    _exchange_kernel[(num_rows, ceil_div(width, block))](
        part,
        addresses,
        side,
        residual,
        weight,
        out,
        added,
        eps,
        H=width,
        BLOCK_H=block,
        HAS_RESIDUAL=residual is not None,
        HAS_NORM=norm is not None,
        num_warps=min(16, max(1, block // 256)),
        **options,
        **dependent_launch(part.device),
    )
    return out
