"""Kinds of weight: what the matrix of a linear layer is stored as.

`PlainWeight`, `Int8Weight` and `Int4Weight` are all there are. A reader (see `weights.readers`)
makes them of a checkpoint's tensors; the ops of a backend have one table that says how each kind
they know is multiplied by, and refuse the others by name. A new kind is a class here, a reader that
makes it, and a row in the tables of the backends that compute it; nothing else asks for the kind of
a weight. A kind may hold another one: low-rank adapters beside a weight, or the shard of a rank
whose products are summed over all ranks, are such kinds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor


class LinearWeight(Protocol):
    """A matrix [out, in] in one of the kinds: a frozen dataclass of tensors."""

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype that the matrix stands for: that of the activations it meets."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        ...


@dataclass(frozen=True, slots=True)
class PlainWeight:
    """Numbers as they are; values: [out, in]."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return _matrix_shape(self.values)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the values."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        return self.values.nbytes


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """Bytes with a scale per output: value * scale.

    values: [out, in] int8; scales: [out] float32.
    """

    values: Tensor
    scales: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return _matrix_shape(self.values)

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        return self.values.nbytes + self.scales.nbytes


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """Steps of 4 bits with a scale and a low per group of inputs: step * scale + low.

    steps: [out, in / 2] uint8, of two neighbouring inputs the first one in the low half;
    scales, lows: [out, groups] bfloat16, every group but the last of `group_inputs` inputs.
    """

    steps: Tensor
    scales: Tensor
    lows: Tensor
    group_inputs: int
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        num_outputs, num_bytes = _matrix_shape(self.steps)
        return num_outputs, 2 * num_bytes

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        return self.steps.nbytes + self.scales.nbytes + self.lows.nbytes


_Weight = TypeVar("_Weight", bound=LinearWeight)


def without_storage(weight: _Weight) -> _Weight:
    """Return what is left of a weight that was packed elsewhere: kind, shape and sizes."""
    rest: _Weight = _on_meta(weight)
    return rest


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changes = {item.name: _on_meta(getattr(value, item.name)) for item in fields(value)}
    return replace(value, **changes)


def _matrix_shape(values: Tensor) -> tuple[int, int]:
    num_outputs, num_inputs = values.shape
    return num_outputs, num_inputs
