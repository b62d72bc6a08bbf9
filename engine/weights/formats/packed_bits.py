"""Packed integers: several of 4 or 8 bits in one int32, and the weights in groups made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tokenbus.engine.errors import ModelBroken, ModelUnsupported
from tokenbus.engine.models.linear_weight import Int4GroupWeight, Int8GroupWeight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def unpacked(words: Tensor, bits: int, places: Sequence[int] | None = None) -> Tensor:
    """words: [rows, W] int32 -> [rows, W * 32 / bits] uint8, the lowest bits of a word first.

    places: of each number of a word, from the lowest bits on, where it stands among them.
    """
    # Little-endian, as safetensors has it: a word's lowest byte comes first.
    found = words.contiguous().view(torch.uint8)
    if bits == 4:
        found = torch.stack((found & 15, found >> 4), -1).flatten(1)
    if places is not None:
        count = 32 // bits
        order = [list(places).index(place) for place in range(count)]
        found = found.view(len(found), -1, count)[..., order].flatten(1)
    return found


def group_weight(
    steps: Tensor,
    scales: Tensor,
    zeros: Tensor,
    group_inputs: int,
    dtype: torch.dtype,
    *,
    bits: int,
    order: Tensor | None = None,
) -> Int4GroupWeight | Int8GroupWeight:
    """Make a weight: steps [out, in] uint8, scales and whole zeros [out, groups]."""
    scales = scales.contiguous()
    if bits == 8:
        whole = zeros.to(torch.int16).contiguous()
        return Int8GroupWeight(steps.contiguous(), scales, whole, group_inputs, dtype, order)
    packed = (steps[:, ::2] | steps[:, 1::2] << 4).contiguous()
    whole = zeros.to(torch.uint8).contiguous()
    return Int4GroupWeight(packed, scales, whole, group_inputs, dtype, order)


def order_of_groups(name: str, groups: Tensor, group_inputs: int) -> Tensor | None:
    """groups: [in] int, the group of each input -> inputs in the order of their groups, [in] int64.

    None if they stand in that order.
    Raises: ModelBroken if a group has not the inputs that its place asks for.
    """
    num_inputs = groups.shape[0]
    expected = torch.arange(num_inputs, device=groups.device) // group_inputs
    groups = groups.long()
    if groups.equal(expected):
        return None
    order = torch.argsort(groups, stable=True)
    if not groups[order].equal(expected):
        raise ModelBroken(f"{name} does not give each group {group_inputs} inputs")
    return order


def refuse_odd(name: str, size: int, multiple: int, what: str) -> None:
    """Refuse a size that cannot be packed."""
    if size % multiple:
        raise ModelUnsupported(f"{name} has {size} {what}, which is no multiple of {multiple}")
