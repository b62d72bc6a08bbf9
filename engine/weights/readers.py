"""Readers: what makes kinds of weight of a checkpoint's tensors.

A reader is asked for each linear of a model in turn. It names the checkpoint tensors that the
linear is made of and the memory each is copied into, and, once all have come, makes the weight. So
a checkpoint that stores other tensors than plain weights, or only a rank's part of them, needs a
reader of its own and nothing else here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.models.linear_weight import PlainWeight
from tokenbus.engine.weights.rounding import round_to_int4, round_to_int8

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from tokenbus.engine.models.linear_weight import LinearWeight


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A linear of the decoder: linears of the checkpoint, stacked on the output axis.

    parts: name in the checkpoint and number of outputs of each, as in
    ("layers.0.self_attn.q_proj", 2048). The head is the linear from which tokens are chosen.
    """

    parts: tuple[tuple[str, int], ...]
    num_inputs: int
    dtype: torch.dtype
    device: torch.device
    is_head: bool = False

    @property
    def num_outputs(self) -> int:
        """Outputs of all parts."""
        return sum(size for _, size in self.parts)


class LinearReading(Protocol):
    """One linear while it is read."""

    @property
    def parts(self) -> Mapping[str, Tensor]:
        """Return the memory that each checkpoint tensor of this linear is copied into, by name."""
        ...

    def draw(self, std: float) -> None:
        """Fill the memory with random numbers instead."""
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

    def check(self, config: Any) -> None:
        """Accept a transformers config whose checkpoint this reader understands.

        Raises: ModelUnsupported for any other.
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

    def check(self, config: Any) -> None:
        """Refuse quantised checkpoints."""
        if getattr(config, "quantization_config", None) is not None:
            raise ModelUnsupported("quantised checkpoints are not supported; use the plain weights")

    def open(self, shape: LinearShape) -> LinearReading:
        """Allocate one matrix for all parts of a linear."""
        return _PlainReading(self, shape)

    def tied(self, embedding: Tensor, shape: LinearShape) -> LinearWeight:
        """Make the weight of a head that is the embedding [V, H], which stays as it is."""
        return self.kind_of(embedding, shape)

    def kind_of(self, values: Tensor, shape: LinearShape) -> LinearWeight:  # noqa: ARG002
        """values: [out, in], of the checkpoint -> a weight, which may share their memory."""
        return PlainWeight(values)


class RoundingReader(PlainReader):
    """Reads plain checkpoints and rounds their linears one by one.

    With int4 the head, on which every choice of a token hangs, keeps 8 bits.
    """

    is_plain = False

    def __init__(self, quantization: str) -> None:
        """Round to `quantization`, int8 or int4."""
        self.name = quantization

    def kind_of(self, values: Tensor, shape: LinearShape) -> LinearWeight:
        """values: [out, in] -> the same, rounded."""
        if self.name == "int4" and not shape.is_head:
            return round_to_int4(values)
        return round_to_int8(values)


class _PlainReading:
    """A matrix that is filled part by part."""

    def __init__(self, reader: PlainReader, shape: LinearShape) -> None:
        self._reader, self._shape = reader, shape
        size = (shape.num_outputs, shape.num_inputs)
        self._values = torch.empty(size, dtype=shape.dtype, device=shape.device)
        parts = torch.split(self._values, [size for _, size in shape.parts])
        names = (f"{name}.weight" for name, _ in shape.parts)
        self.parts = dict(zip(names, parts, strict=True))

    def draw(self, std: float) -> None:
        self._values.normal_(std=std)

    def finish(self) -> LinearWeight:
        return self._reader.kind_of(self._values, self._shape)


def choose_reader(quantization: str | None) -> WeightReader:
    """Return the reader of a setting: weights as they are, or rounded to int8 or int4."""
    return PlainReader() if quantization is None else RoundingReader(quantization)
