"""Parts of a linear in a quantised checkpoint: one stored matrix each, with scales of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

import torch

from tokenbus.engine.errors import ModelBroken, ModelUnsupported
from tokenbus.engine.models.linear_weight import PlainWeight
from tokenbus.engine.weights.readers import Cut
from tokenbus.engine.weights.slots import FLOATS, KeptSlot, MemorySlot, Shape, refuse_infinite

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from tokenbus.engine.models.linear_weight import LinearWeight
    from tokenbus.engine.weights.readers import LinearShape
    from tokenbus.engine.weights.slots import Slot

SCALE_FLOATS = FLOATS - {torch.float64}


class PartFormat(Protocol):
    """How a matrix is stored: its tensors, and the kind of weight that they make."""

    def open(self, name: str, num_outputs: int, shape: LinearShape) -> QuantisedPart:
        """Begin the part of a linear that is called `name` in the checkpoint.

        Raises: ModelUnsupported if a matrix of its sizes cannot be stored so.
        """
        ...


class QuantisedPart(ABC):
    """One stored matrix [out, in] while it is read; a subclass names its slots and makes it."""

    def __init__(self, name: str, num_outputs: int, shape: LinearShape) -> None:
        self.name = name
        self.num_outputs, self.num_inputs = num_outputs, shape.num_inputs
        self.dtype, self.device = shape.dtype, shape.device
        self.slots: dict[str, Slot] = {}
        self._cut = shape.cut
        self._drawn: LinearWeight | None = None

    def refuse_cut(self, *, outputs: int = 1, inputs: int = 1) -> None:
        """Refuse a rank's part that is no whole number of groups of so many outputs or inputs.

        Raises: ModelUnsupported.
        """
        count, group = self.num_outputs, outputs
        if self._cut is Cut.INPUTS:
            count, group = self.num_inputs, inputs
        if self._cut is not Cut.NONE and count % group:
            raise ModelUnsupported(
                f"{self.name} cannot be cut for ranks: a part of {count} {self._cut.value} is not"
                f" made of groups of {group}"
            )

    @abstractmethod
    def weight(self) -> LinearWeight:
        """Make the weight of what has come."""

    @abstractmethod
    def random(self, values: Tensor) -> LinearWeight:
        """Make a weight near to values, [out, in], of the kind that the checkpoint gives."""

    def draw(self, std: float) -> None:
        """Take random numbers for what the checkpoint has."""
        size = (self.num_outputs, self.num_inputs)
        values = torch.empty(size, dtype=self.dtype, device=self.device)
        self._drawn = self.random(values.normal_(std=std))

    def finish(self) -> LinearWeight:
        """Return the weight."""
        return self.weight() if self._drawn is None else self._drawn

    def keep(
        self,
        last: str,
        dtypes: Iterable[torch.dtype],
        shapes: Sequence[Shape],
        *,
        is_required: bool = True,
    ) -> KeptSlot:
        """Return a new slot for the tensor `<name>.<last>`."""
        slot = KeptSlot(frozenset(dtypes), shapes, self.device, is_required=is_required)
        self.slots[f"{self.name}.{last}"] = slot
        return slot

    def only(self, slots: Sequence[KeptSlot], what: str) -> Tensor:
        """Return the tensor of the one slot that was filled.

        Raises: ModelBroken if none was, or several.
        """
        found = [slot for slot in slots if slot.is_filled]
        if len(found) != 1:
            names = " or ".join(name for name, slot in self.slots.items() if slot in slots)
            raise ModelBroken(f"{self.name} has {len(found)} tensors for {what}; {names} is needed")
        if found[0].tensor.is_floating_point():
            refuse_infinite(found[0].name, found[0].tensor)
        return found[0].tensor

    def refuse_nonzero(self, slot: KeptSlot) -> None:
        """Refuse a tensor that may come, but has to be zero."""
        if slot.is_filled and bool(slot.tensor.to(torch.float32).any()):
            raise ModelBroken(f"{slot.name} is not zero, though the config calls it symmetric")


class PlainPart(QuantisedPart):
    """A matrix that was left out of the quantisation."""

    def __init__(self, name: str, num_outputs: int, shape: LinearShape) -> None:
        super().__init__(name, num_outputs, shape)
        self._values: Tensor | None = None
        size = (num_outputs, shape.num_inputs)
        self.slots[f"{name}.weight"] = MemorySlot(size, self._memory)

    def weight(self) -> LinearWeight:
        """Return the numbers as they are."""
        return PlainWeight(self._memory())

    def random(self, values: Tensor) -> LinearWeight:
        """Return the values."""
        return PlainWeight(values)

    def _memory(self) -> Tensor:
        if self._values is None:
            size = (self.num_outputs, self.num_inputs)
            self._values = torch.empty(size, dtype=self.dtype, device=self.device)
        return self._values


def whole_scale_shapes(num_outputs: int) -> tuple[Shape, ...]:
    """Return the shapes of one scale for a matrix, or of one per output."""
    return (), (1,), (1, 1), (num_outputs,), (num_outputs, 1)


def per_output(scale: Tensor, num_outputs: int) -> Tensor:
    """scale: any of `whole_scale_shapes` -> [out] float32."""
    return scale.float().reshape(-1).expand(num_outputs).contiguous()
