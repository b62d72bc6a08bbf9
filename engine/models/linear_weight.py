"""Kinds of weight: what the matrix of a linear layer is stored as.

These are all there are; [out, in] is the matrix, w one of its numbers:

| kind | stored | w |
|---|---|---|
| `PlainWeight` | numbers of the model's dtype | value |
| `Int8Weight` | int8, a scale per output | value * scale |
| `Int4Weight` | 4 bits, a scale and a low per group of inputs | step * scale + low |
| `Fp8Weight` | float8 e4m3, a scale per output | value * scale |
| `Fp8BlockWeight` | float8 e4m3, a scale per block of outputs and inputs | value * scale |
| `Int4GroupWeight` | 4 bits, a scale and a zero point per group of inputs | (step - zero) * scale |
| `Int8GroupWeight` | 8 bits, a scale and a zero point per group of inputs | (step - zero) * scale |

All scales multiply. A reader (see `weights.readers`) makes kinds of a checkpoint's tensors; the ops
of a backend have one table that says how each kind they know is multiplied by, and refuse the
others by name. What a kernel wants laid out otherwise is packed by the backend when it binds a
weight; the kinds stay as they are read. `dequantised` is what a kernel's result is tested against.

A new kind is a class here, a reader that makes it, and a row in the tables of the backends that
compute it; nothing else asks for the kind of a weight. A kind may hold another one: low-rank
adapters beside a weight, or the shard of a rank whose products are summed over all ranks, are such
kinds.

It is one file because the kinds are a closed set, read side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

import torch
import torch.nn.functional as F
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

    def dequantised(self) -> Tensor:
        """Return the numbers that the weight stands for, [out, in] float32."""
        ...


@dataclass(frozen=True, slots=True)
class _Stored:
    """What the kinds share: the first of their tensors is the matrix, a row for each output."""

    _INPUTS_PER_COLUMN: ClassVar[int] = 1

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        num_outputs, num_columns = getattr(self, fields(self)[0].name).shape
        return num_outputs, self._INPUTS_PER_COLUMN * num_columns

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        held = (getattr(self, item.name) for item in fields(self))
        return sum(tensor.nbytes for tensor in held if isinstance(tensor, Tensor))


@dataclass(frozen=True, slots=True)
class PlainWeight(_Stored):
    """Numbers as they are; values: [out, in]."""

    values: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the values."""
        return self.values.dtype

    def dequantised(self) -> Tensor:
        """Return the values, [out, in] float32."""
        return self.values.float()


@dataclass(frozen=True, slots=True)
class Int8Weight(_Stored):
    """Bytes with a scale per output: value * scale.

    values: [out, in] int8; scales: [out] float32.
    """

    values: Tensor
    scales: Tensor
    dtype: torch.dtype

    def dequantised(self) -> Tensor:
        """Return value * scale, [out, in] float32."""
        return self.values.float() * self.scales[:, None]


@dataclass(frozen=True, slots=True)
class Int4Weight(_Stored):
    """Steps of 4 bits with a scale and a low per group of inputs: step * scale + low.

    steps: [out, in / 2] uint8, of two neighbouring inputs the first one in the low half;
    scales, lows: [out, groups] bfloat16, every group but the last of `group_inputs` inputs.
    """

    _INPUTS_PER_COLUMN = 2

    steps: Tensor
    scales: Tensor
    lows: Tensor
    group_inputs: int
    dtype: torch.dtype

    def dequantised(self) -> Tensor:
        """Return step * scale + low, [out, in] float32."""
        steps = _halves_of(self.steps).float()
        groups = torch.arange(steps.shape[1], device=steps.device) // self.group_inputs
        return steps * self.scales.float()[:, groups] + self.lows.float()[:, groups]


@dataclass(frozen=True, slots=True)
class Fp8Weight(_Stored):
    """Float8 with a scale per output: value * scale.

    values: [out, in] float8_e4m3fn; scales: [out] float32. A checkpoint with one scale for a whole
    matrix has it once per output here. input_scale: the scale that the activations were calibrated
    to, as in round_to_float8(x / input_scale); None where they get theirs as they come. It is a
    hint: no number of the weight depends on it.
    """

    values: Tensor
    scales: Tensor
    dtype: torch.dtype
    input_scale: float | None = None

    def dequantised(self) -> Tensor:
        """Return value * scale, [out, in] float32."""
        return self.values.float() * self.scales[:, None]


@dataclass(frozen=True, slots=True)
class Fp8BlockWeight(_Stored):
    """Float8 with a scale per block of outputs and inputs: value * scale.

    values: [out, in] float8_e4m3fn; scales: [ceil(out / block_outputs), ceil(in / block_inputs)]
    float32; the last block of either axis may be cut off. Checkpoints have blocks of 128 x 128.
    Where matrices are stacked whose outputs are no multiple of that, block_outputs is the largest
    number that fits them all, so that no block spans two matrices.
    """

    values: Tensor
    scales: Tensor
    block_outputs: int
    block_inputs: int
    dtype: torch.dtype

    def dequantised(self) -> Tensor:
        """Return value * scale, [out, in] float32."""
        num_outputs, num_inputs = self.shape
        scales = self.scales.repeat_interleave(self.block_outputs, 0)[:num_outputs]
        scales = scales.repeat_interleave(self.block_inputs, 1)[:, :num_inputs]
        return self.values.float() * scales


@dataclass(frozen=True, slots=True)
class Int4GroupWeight(_Stored):
    """Steps of 4 bits with a scale and a zero point per group of inputs: (step - zero) * scale.

    steps: [out, in / 2] uint8, of two neighbouring columns the first one in the low half;
    scales: [out, groups] float16, bfloat16 or float32, as the checkpoint has them;
    zeros: [out, groups] uint8, 0 to 16: whole numbers, so the difference is exact. Weights without
    zero points of their own have 8 everywhere.
    Every group but the last has `group_inputs` columns; any size, also the whole row.
    order: [in] int64 or None: column j of steps is input order[j], so x[:, order] is what the
    columns multiply. None where column j is input j. It is a permutation.
    """

    _INPUTS_PER_COLUMN = 2

    steps: Tensor
    scales: Tensor
    zeros: Tensor
    group_inputs: int
    dtype: torch.dtype
    order: Tensor | None = None

    def dequantised(self) -> Tensor:
        """Return (step - zero) * scale with inputs in their own order, [out, in] float32."""
        return _from_groups(_halves_of(self.steps), self)


@dataclass(frozen=True, slots=True)
class Int8GroupWeight(_Stored):
    """Steps of 8 bits with a scale and a zero point per group of inputs: (step - zero) * scale.

    steps: [out, in] uint8; zeros: [out, groups] int16, 0 to 256, 128 everywhere for weights without
    zero points of their own; the rest is as in `Int4GroupWeight`.
    """

    steps: Tensor
    scales: Tensor
    zeros: Tensor
    group_inputs: int
    dtype: torch.dtype
    order: Tensor | None = None

    def dequantised(self) -> Tensor:
        """Return (step - zero) * scale with inputs in their own order, [out, in] float32."""
        return _from_groups(self.steps, self)


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


def _halves_of(steps: Tensor) -> Tensor:
    """steps: [out, in / 2] uint8, the first of two in the low half -> [out, in] uint8."""
    return torch.stack((steps & 15, steps >> 4), -1).flatten(1)


def _from_groups(steps: Tensor, weight: Int4GroupWeight | Int8GroupWeight) -> Tensor:
    """steps: [out, in] uint8 of a weight -> its numbers, [out, in] float32."""
    num_outputs, num_inputs = steps.shape
    # The last group is filled up, and what it was filled with cut off.
    padded = F.pad(steps, (0, -num_inputs % weight.group_inputs))
    values = padded.view(num_outputs, -1, weight.group_inputs).float()
    values -= weight.zeros.float()[..., None]
    values *= weight.scales.float()[..., None]
    values = values.flatten(1)[:, :num_inputs]
    if weight.order is None:
        return values
    restored = torch.empty_like(values)
    restored[:, weight.order] = values
    return restored
