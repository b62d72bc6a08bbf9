"""Readers: what makes kinds of weight of a checkpoint's tensors.

A reader is asked for each linear of a model in turn. It names the checkpoint tensors that the
linear is made of and the slot of each, and, once all have come, makes the weight. So a checkpoint
that stores other tensors than plain weights, or only a rank's part of them, needs a reader of its
own and nothing else here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.models.linear_weight import PlainWeight
from tokenbus.engine.weights.rounding import (
    round_to_fp8,
    round_to_int4,
    round_to_int4_groups,
    round_to_int8,
)
from tokenbus.engine.weights.slots import MemorySlot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from tokenbus.engine.models.linear_weight import LinearWeight
    from tokenbus.engine.weights.slots import Slot


class Cut(Enum):
    """Between which of its numbers a matrix is cut where each rank has a part of it."""

    NONE = "none"
    OUTPUTS = "outputs"
    INPUTS = "inputs"


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A linear of the decoder: linears of the checkpoint, stacked on the output axis.

    parts: name in the checkpoint and number of outputs of each, as in
    ("layers.0.self_attn.q_proj", 2048). The head is the linear from which tokens are chosen.
    cut: where the checkpoint's matrices are larger, and these are a rank's part of them.
    """

    parts: tuple[tuple[str, int], ...]
    num_inputs: int
    dtype: torch.dtype
    device: torch.device
    is_head: bool = False
    cut: Cut = Cut.NONE

    @property
    def num_outputs(self) -> int:
        """Outputs of all parts."""
        return sum(size for _, size in self.parts)


class LinearReading(Protocol):
    """One linear while it is read."""

    @property
    def parts(self) -> Mapping[str, Slot]:
        """Return the slot of each checkpoint tensor of this linear, by name."""
        ...

    def draw(self, std: float) -> None:
        """Fill the slots with random numbers instead."""
        ...

    def finish(self) -> LinearWeight:
        """Make the weight; the reading is over."""
        ...


class WeightReader(Protocol):
    """Reads every linear of a model as some kind of weight."""

    @property
    def name(self) -> str:
        """What the weights are, as a message calls them."""
        ...

    @property
    def is_plain(self) -> bool:
        """True if the weights stay the numbers of a plain checkpoint, as transformers has them."""
        ...

    def check(self, told: Mapping[str, Any] | None) -> None:
        """Accept what a checkpoint says of its quantisation, None if it says nothing.

        Raises: ModelUnsupported for what this reader does not understand.
        """
        ...

    def open(self, shape: LinearShape) -> LinearReading:
        """Begin to read a linear."""
        ...

    def tied(self, embedding: Tensor, shape: LinearShape) -> LinearWeight:
        """Make the weight of a head that is the embedding [V, H], which stays as it is."""
        ...


class PlainReader:
    """Reads plain checkpoints as plain weights; a subclass may make another kind of them."""

    name = "plain"
    is_plain = True

    def check(self, told: Mapping[str, Any] | None) -> None:
        """Refuse quantised checkpoints."""
        if told is not None:
            raise ModelUnsupported(f"the checkpoint is quantised and cannot be read as {self.name}")

    def open(self, shape: LinearShape) -> LinearReading:
        """Begin one matrix for all parts of a linear."""
        return _PlainReading(self, shape)

    def tied(self, embedding: Tensor, shape: LinearShape) -> LinearWeight:
        """Make the weight of a head that is the embedding [V, H], which stays as it is."""
        return self.kind_of(embedding, shape)

    def kind_of(self, values: Tensor, shape: LinearShape) -> LinearWeight:  # noqa: ARG002
        """values: [out, in], of the checkpoint -> a weight, which may share their memory."""
        return PlainWeight(values)


class RoundingReader(PlainReader):
    """Reads plain checkpoints and rounds their linears one by one, each as soon as it is read.

    The head, on which every choice of a token hangs, keeps all its bits with fp8 and grouped int4,
    as in the checkpoints that are published so, and 8 bits with the other int4.
    """

    is_plain = False

    def __init__(self, quantization: str, *, grouped: bool = False) -> None:
        """Round to `quantization`: fp8, int8 or int4.

        grouped: int4 has a scale and a whole zero point per 128 inputs, else a scale and a low
            per 32.
        """
        self.name = quantization
        self._grouped = grouped

    def check(self, told: Mapping[str, Any] | None) -> None:
        """Refuse quantised checkpoints: they were rounded once."""
        if told is not None:
            raise ModelUnsupported(
                f"the checkpoint is quantised already; load it without {self.name} quantization"
            )

    def kind_of(self, values: Tensor, shape: LinearShape) -> LinearWeight:
        """values: [out, in] -> the same, rounded."""
        if self.name == "fp8":
            return PlainWeight(values) if shape.is_head else round_to_fp8(values)
        if self.name == "int4" and self._grouped:
            return PlainWeight(values) if shape.is_head else round_to_int4_groups(values)
        if self.name == "int4" and not shape.is_head:
            return round_to_int4(values)
        return round_to_int8(values)


class _PlainReading:
    """A matrix that is filled part by part; its memory is taken when the first part comes."""

    def __init__(self, reader: PlainReader, shape: LinearShape) -> None:
        self._reader, self._shape = reader, shape
        self._values: Tensor | None = None
        self.parts: dict[str, Slot] = {}
        start = 0
        for name, size in shape.parts:
            rows = partial(self._rows, start, start + size)
            self.parts[f"{name}.weight"] = MemorySlot((size, shape.num_inputs), rows)
            start += size

    def draw(self, std: float) -> None:
        self._matrix().normal_(std=std)

    def finish(self) -> LinearWeight:
        return self._reader.kind_of(self._matrix(), self._shape)

    def _matrix(self) -> Tensor:
        if self._values is None:
            shape = self._shape
            size = (shape.num_outputs, shape.num_inputs)
            self._values = torch.empty(size, dtype=shape.dtype, device=shape.device)
        return self._values

    def _rows(self, start: int, end: int) -> Tensor:
        return self._matrix()[start:end]


def choose_reader(quantization: str | None, *, grouped: bool = False) -> WeightReader | None:
    """Return the reader of a setting; None where the checkpoint says how it is read."""
    return None if quantization is None else RoundingReader(quantization, grouped=grouped)
