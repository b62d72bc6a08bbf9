"""Stacking: matrices that were stored apart, one above the other as the decoder runs them."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import reduce
from math import gcd
from typing import TYPE_CHECKING, Any

import torch

from tokenbus.engine.models.linear_weight import (
    Fp8BlockWeight,
    Fp8Weight,
    Int4GroupWeight,
    Int8GroupWeight,
    Int8Weight,
    PlainWeight,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from tokenbus.engine.models.linear_weight import LinearWeight

_log = logging.getLogger(__name__)


def stacked(name: str, parts: Sequence[LinearWeight]) -> LinearWeight:
    """Return one weight whose outputs are those of all parts, each with scales of its own.

    Every number stays what it is. Parts that no kind can hold together, because they are of
    several kinds or in groups of several sizes, are kept as numbers of the model's dtype, and the
    log says so; `name` is what it calls them.
    """
    if len(parts) == 1:
        return parts[0]
    kinds = {type(part) for part in parts}
    stack = _STACKS.get(kinds.pop()) if len(kinds) == 1 else None
    weight = None if stack is None else stack(parts)
    if weight is not None:
        return weight
    _log.warning(
        "weights.widened: the parts of %s cannot be kept together as they are stored, and are"
        " kept as plain numbers",
        name,
    )
    return PlainWeight(torch.cat([part.dequantised().to(part.dtype) for part in parts]))


def _plain(parts: Sequence[PlainWeight]) -> PlainWeight:
    return PlainWeight(torch.cat([part.values for part in parts]))


def _int8(parts: Sequence[Any]) -> Any:
    return replace(parts[0], **_joined(parts, "values", "scales"))


def _fp8(parts: Sequence[Any]) -> Any:
    found = [part.input_scale for part in parts if part.input_scale is not None]
    # Activations are the same for all: the widest of their ranges holds them.
    widest = max(found) if len(found) == len(parts) else None
    return replace(parts[0], input_scale=widest, **_joined(parts, "values", "scales"))


def _fp8_blocks(parts: Sequence[Any]) -> Any:
    if len({part.block_inputs for part in parts}) > 1:
        return None
    # Blocks of all parts begin at multiples of this; those of the last may end anywhere.
    sizes = [part.block_outputs for part in parts]
    block = reduce(gcd, [*sizes, *(part.shape[0] for part in parts[:-1])])
    scales = []
    for part in parts:
        num_blocks = -(-part.shape[0] // block)
        scales.append(part.scales.repeat_interleave(part.block_outputs // block, 0)[:num_blocks])
    return replace(
        parts[0], scales=torch.cat(scales), block_outputs=block, **_joined(parts, "values")
    )


def _groups(parts: Sequence[Any]) -> Any:
    """Stack weights in groups, which have to have one size and one order of inputs."""
    first = parts[0]
    if any(part.group_inputs != first.group_inputs for part in parts):
        return None
    if not all(_same_order(first.order, part.order) for part in parts):
        return None
    return replace(first, **_joined(parts, "steps", "scales", "zeros"))


def _same_order(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.equal(second)


def _joined(parts: Sequence[Any], *names: str) -> dict[str, Tensor]:
    """Return the fields of those names, one part's rows below another's."""
    joined = {}
    for name in names:
        tensors: list[Tensor] = [getattr(part, name) for part in parts]
        if len({tensor.dtype for tensor in tensors}) > 1:
            # Scales in several dtypes are all exact in the widest.
            tensors = [tensor.float() for tensor in tensors]
        joined[name] = torch.cat(tensors)
    return joined


_STACKS: Mapping[type[Any], Callable[[Any], LinearWeight | None]] = {
    PlainWeight: _plain,
    Int8Weight: _int8,
    Fp8Weight: _fp8,
    Fp8BlockWeight: _fp8_blocks,
    Int4GroupWeight: _groups,
    Int8GroupWeight: _groups,
}
