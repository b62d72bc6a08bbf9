"""Linears and layers of a decoder while they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenbus.engine.models.layers import DecoderLayer, GatedMLP, Linear, Mixture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from tokenbus.engine.kv_cache import AttentionSpec
    from tokenbus.engine.models.decoder_config import MixtureShape
    from tokenbus.engine.models.linear_weight import LinearWeight
    from tokenbus.engine.models.rope import RopeTable
    from tokenbus.engine.weights.readers import LinearReading
    from tokenbus.engine.weights.slots import Slot


class OpenLinear:
    """A linear while it is read; its memory is let go when its weight is made."""

    def __init__(self, reading: LinearReading, bias: Tensor | None) -> None:
        self.bias = bias
        self._reading: LinearReading | None = reading
        self._weight: LinearWeight | None = None

    @property
    def slots(self) -> Mapping[str, Slot]:
        """Return the slots that are still to be filled, or kept, by name."""
        return {} if self._reading is None else self._reading.parts

    def draw(self, std: float) -> None:
        """Fill the slots with random numbers instead."""
        assert self._reading is not None
        self._reading.draw(std)

    def make(self) -> LinearWeight:
        """Return the weight, and let go of what it was made of."""
        if self._reading is not None:
            self._weight, self._reading = self._reading.finish(), None
        assert self._weight is not None
        return self._weight

    def finish(self) -> Linear:
        """Return the linear."""
        return Linear(self.make(), self.bias)


@dataclass(frozen=True, slots=True)
class OpenMLP:
    """An MLP while it is read."""

    gate_up: OpenLinear
    down: OpenLinear

    def linears(self) -> tuple[OpenLinear, ...]:
        """Return its projections in the order they run."""
        return self.gate_up, self.down

    def finish(self) -> GatedMLP:
        """Return the MLP."""
        return GatedMLP(self.gate_up.finish(), self.down.finish())


@dataclass(frozen=True, slots=True)
class OpenMixture:
    """A mixture of experts while it is read: each matrix of an expert goes to its own place."""

    shape: MixtureShape
    router: Tensor
    gate_up: OpenLinear
    down: OpenLinear
    shared: OpenMLP | None

    def linears(self) -> tuple[OpenLinear, ...]:
        """Return the stacks of all experts, and the projections of the shared one."""
        shared = () if self.shared is None else self.shared.linears()
        return self.gate_up, self.down, *shared

    def finish(self) -> Mixture:
        """Return the mixture."""
        shared = None if self.shared is None else self.shared.finish()
        stacks = self.gate_up.finish(), self.down.finish()
        return Mixture(self.shape, self.router, *stacks, shared)


@dataclass(frozen=True, slots=True)
class OpenLayer:
    """A layer while it is read; `norms` by the fields of DecoderLayer."""

    spec: AttentionSpec
    qkv: OpenLinear
    o: OpenLinear
    mlp: OpenMLP | OpenMixture
    norms: dict[str, Tensor | None]

    def linears(self) -> tuple[OpenLinear, ...]:
        """Return the layer's projections in the order they run."""
        return self.qkv, self.o, *self.mlp.linears()

    def finish(self, rope: RopeTable | None) -> DecoderLayer:
        """Return the layer, with the rotary table that it has."""
        return DecoderLayer(
            spec=self.spec,
            rope=rope,
            qkv=self.qkv.finish(),
            o=self.o.finish(),
            mlp=self.mlp.finish(),
            **self.norms,
        )
