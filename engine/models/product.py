"""Products: a linear's weight and bias, bound once to the code that multiplies by their kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch.nn.functional as F

from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.models.decoder_config import Activation

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.models.linear_weight import LinearWeight


class Product(ABC):
    """y = x @ weight.T + bias on one device; a new kind of weight needs `multiply` alone."""

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """x: [T, in] -> [T, out], dtype of x."""

    def gated(self, x: Tensor, kind: Activation) -> Tensor:
        """x: [T, H] -> activation(gate) * up of its projection to [T, 2 I], [T, I]."""
        return gated(self.multiply(x), kind)

    def unrounded(self, x: Tensor) -> Tensor:
        """x: [T, in] -> [T, out], the sums in float32 where the device can give them so."""
        return self.multiply(x)


class MixtureProduct(ABC):
    """A mixture of experts bound to the code that computes it: router, experts, shared expert."""

    @abstractmethod
    def mix(self, x: Tensor) -> Tensor:
        """x: [T, H] -> [T, H], dtype of x: the weighted sum of each token's experts."""


@dataclass(frozen=True, slots=True)
class RoutingWatch:
    """What a bench asks of the routers of a model.

    counts: [2] int64 on the device: experts that got any token, summed over layers and passes, and
    how many layers and passes there were. is_uniform: in place of its logits, a hash of them
    chooses a token's experts, so that every expert is equally likely.
    """

    counts: Tensor
    is_uniform: bool = False


def gated(gate_up: Tensor, kind: Activation) -> Tensor:
    """gate_up: [T, 2 I], gates first -> activation(gate) * up, [T, I]."""
    gate, up = gate_up.chunk(2, -1)
    if kind is Activation.SILU:
        return F.silu(gate).mul_(up)
    approximate = "tanh" if kind is Activation.GELU_TANH else "none"
    return F.gelu(gate, approximate=approximate).mul_(up)


# From a kind of weight to what binds a weight of it and its bias, [out] or None.
ProductTable = Mapping[type[Any], Callable[[Any, "Tensor | None"], Product]]


class MixtureBinder(NamedTuple):
    """What mixtures are bound to, and the kinds of weight that it keeps as plain numbers.

    bind: takes a `Mixture` whose shared expert has its products. is_native: not plain torch.
    """

    bind: Callable[[Any, Activation], MixtureProduct]
    widened: tuple[type[Any], ...]
    is_native: bool = False


_Entry = TypeVar("_Entry")


def entry_of(table: Mapping[type[Any], _Entry], weight: LinearWeight) -> _Entry:
    """Return what a table has for the kind of a weight.

    Raises: ModelUnsupported with the kinds that the table knows.
    """
    entry = table.get(type(weight))
    if entry is None:
        known = ", ".join(kind.__name__ for kind in table)
        raise ModelUnsupported(
            f"a linear came as {type(weight).__name__}; for this model and device there is {known}"
        )
    return entry


class TorchProduct(Product):
    """A plain weight in plain torch."""

    def __init__(self, values: Tensor, bias: Tensor | None) -> None:
        self._values, self._bias = values, bias

    def multiply(self, x: Tensor) -> Tensor:
        """x: [T, in] -> [T, out], dtype of x."""
        return F.linear(x, self._values, self._bias)
