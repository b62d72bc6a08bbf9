"""Slots: where the tensors of a checkpoint go, and which of them each slot takes.

A tensor is taken as it is or not at all: one of another dtype or shape is refused by name, because
a cast leaves out what the number was to be scaled by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from tokenbus.engine.errors import ModelBroken, ModelUnsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

# What is a number by itself, to be rounded to the dtype of the model.
FLOATS = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))

Shape = tuple[int, ...]


class Slot(Protocol):
    """A place for one tensor of a checkpoint."""

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Shapes of which the tensor has to have one."""
        ...

    @property
    def is_required(self) -> bool:
        """False if a checkpoint may do without the tensor."""
        ...

    @property
    def is_filled(self) -> bool:
        """True once the tensor has come."""
        ...

    def fill(self, name: str, tensor: Tensor) -> None:
        """Take the tensor, called `name` in the checkpoint.

        Raises: ModelBroken for a wrong shape or a second tensor, ModelUnsupported for a dtype that
            cannot be read here.
        """
        ...


class MemorySlot:
    """Memory that a tensor of plain numbers is copied into, rounded to the memory's dtype."""

    is_required = True

    def __init__(self, shape: Shape, memory: Callable[[], Tensor]) -> None:
        """`memory` returns the place, of `shape`; it is asked when the tensor comes."""
        self.is_filled = False
        self.shapes, self._memory = (shape,), memory

    def fill(self, name: str, tensor: Tensor) -> None:
        """Copy the tensor."""
        refuse_second(name, is_filled=self.is_filled)
        refuse_dtype(name, tensor, FLOATS)
        refuse_shape(name, tensor, self.shapes)
        self._memory().copy_(tensor)
        self.is_filled = True


class KeptSlot:
    """A tensor that is kept as the checkpoint has it, on the device of the model."""

    def __init__(
        self,
        dtypes: Sequence[torch.dtype] | frozenset[torch.dtype],
        shapes: Sequence[Shape],
        device: torch.device,
        *,
        is_required: bool = True,
    ) -> None:
        """Take a tensor of one of `dtypes` and one of `shapes`."""
        self.is_required = is_required
        self.shapes = tuple(shapes)
        self._dtypes, self._device = frozenset(dtypes), device
        self._tensor: Tensor | None = None
        self._name = ""

    @property
    def is_filled(self) -> bool:
        """True once the tensor has come."""
        return self._tensor is not None

    @property
    def name(self) -> str:
        """Return what the tensor is called in the checkpoint."""
        return self._name

    @property
    def tensor(self) -> Tensor:
        """Return the tensor, which has come."""
        assert self._tensor is not None
        return self._tensor

    @tensor.setter
    def tensor(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def fill(self, name: str, tensor: Tensor) -> None:
        """Copy the tensor to the device: what a file is mapped to may change."""
        refuse_second(name, is_filled=self.is_filled)
        refuse_dtype(name, tensor, self._dtypes)
        refuse_shape(name, tensor, self.shapes)
        self._name = name
        self._tensor = tensor.to(self._device, copy=True)


def refuse_second(name: str, *, is_filled: bool) -> None:
    """Refuse a tensor for a place that has one."""
    if is_filled:
        raise ModelBroken(f"{name} comes twice, in two files or under two names")


def refuse_dtype(name: str, tensor: Tensor, dtypes: frozenset[torch.dtype]) -> None:
    """Refuse a tensor of none of the dtypes."""
    if tensor.dtype in dtypes:
        return
    expected = "plain numbers" if dtypes == FLOATS else " or ".join(sorted(map(_told, dtypes)))
    reason = ""
    if dtypes == FLOATS:
        reason = ", and config.json names no quantisation by which they could be read"
    raise ModelUnsupported(
        f"{name} is stored as {_told(tensor.dtype)} where {expected} are expected{reason}"
    )


def refuse_shape(name: str, tensor: Tensor, shapes: Sequence[Shape]) -> None:
    """Refuse a tensor of none of the shapes."""
    if tuple(tensor.shape) not in shapes:
        expected = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
        raise ModelBroken(
            f"{name} is {list(tensor.shape)} in the checkpoint, the config asks for {expected}"
        )


def refuse_infinite(name: str, scales: Tensor) -> None:
    """Refuse scales that are not finite."""
    if not bool(scales.isfinite().all()):
        raise ModelBroken(f"{name} holds numbers that are not finite; fetch the model again")


def _told(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
