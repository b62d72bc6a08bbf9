"""The reader of quantised checkpoints: which matrix is stored in which format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from tokenbus.engine.models.linear_weight import PlainWeight
from tokenbus.engine.weights.formats.quantised_part import PlainPart, QuantisedPart
from tokenbus.engine.weights.formats.stacking import stacked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from tokenbus.engine.models.linear_weight import LinearWeight
    from tokenbus.engine.weights.formats.quantised_part import PartFormat
    from tokenbus.engine.weights.readers import LinearReading, LinearShape
    from tokenbus.engine.weights.slots import Slot


class Scheme(Protocol):
    """What a quantisation config says of the modules of a model."""

    @property
    def name(self) -> str:
        """What the format is called."""
        ...

    def format_of(self, names: Sequence[str], *, is_head: bool) -> PartFormat | None:
        """Return how a module is stored, None for plain numbers.

        names: what the module may be called in the checkpoint and in the config.
        Raises: ModelUnsupported if the config gives it a format that cannot be read.
        """
        ...


class QuantisedReader:
    """Reads every linear in the formats of its parts, and stacks these as they are stored."""

    is_plain = False

    def __init__(self, scheme: Scheme, prefixes: Sequence[str]) -> None:
        """`prefixes` are what stands before the decoder's own names in the checkpoint."""
        self.name = scheme.name
        self._scheme, self._prefixes = scheme, tuple(prefixes)

    def check(self, told: Mapping[str, Any] | None) -> None:
        """Accept what the scheme was made of."""

    def open(self, shape: LinearShape) -> LinearReading:
        """Begin the parts of a linear, each in its own format."""
        return _StackedReading([self._part(*part, shape) for part in shape.parts])

    def tied(self, embedding: Tensor, shape: LinearShape) -> LinearWeight:
        """Return the embedding [V, H] as it is."""
        del shape
        return PlainWeight(embedding)

    def _part(self, name: str, num_outputs: int, shape: LinearShape) -> QuantisedPart:
        if shape.is_head:
            names = [name, f"language_model.{name}"]
        else:
            names = [f"{prefix}{name}" for prefix in self._prefixes]
        found = self._scheme.format_of(names, is_head=shape.is_head)
        if found is None:
            return PlainPart(name, num_outputs, shape)
        return found.open(name, num_outputs, shape)


class _StackedReading:
    """A linear whose parts are read apart."""

    def __init__(self, parts: Sequence[QuantisedPart]) -> None:
        self._parts = parts

    @property
    def parts(self) -> Mapping[str, Slot]:
        return {name: slot for part in self._parts for name, slot in part.slots.items()}

    def draw(self, std: float) -> None:
        for part in self._parts:
            part.draw(std)

    def finish(self) -> LinearWeight:
        names = ", ".join(part.name for part in self._parts)
        return stacked(names, [part.finish() for part in self._parts])
