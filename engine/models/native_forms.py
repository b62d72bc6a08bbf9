"""Weights as the CPU's kernels take them, by kind, before they are packed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.models.decoder_config import Activation
from tokenbus.engine.models.linear_weight import (
    Fp8BlockWeight,
    Fp8Weight,
    Int4GroupWeight,
    Int4Weight,
    Int8GroupWeight,
    Int8Weight,
    LinearWeight,
    PlainWeight,
)
from tokenbus.kernels.cpu.native import INT4_GROUP_INPUTS, WeightFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

# Numbers of the activations in `rows.h`.
ACTIVATIONS = {Activation.SILU: 0, Activation.GELU_TANH: 1, Activation.GELU: 2}


class NativeForm(NamedTuple):
    """A weight as the kernels read it before they pack it; every tensor has a row per output.

    values: [out, in] in the model's dtype, int8 for INT8, [out, in / 2] uint8 for INT4; scales:
    [out] float32 of INT8, and of PLAIN if its outputs have any; groups: scales and lows, [out,
    groups] bfloat16 each, of INT4.
    """

    values: Tensor
    scales: Tensor | None = None
    groups: tuple[Tensor, Tensor] | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> NativeForm:
        """Return the form with every tensor's rows changed."""
        groups = self.groups
        return NativeForm(
            change(self.values),
            None if self.scales is None else change(self.scales),
            None if groups is None else (change(groups[0]), change(groups[1])),
        )


class NativeKind(NamedTuple):
    """A kind of weight to the kernels: the format they keep it in, and what they pack."""

    format: WeightFormat
    form: Callable[[Any], NativeForm]


def _int4_form(weight: Int4Weight) -> NativeForm:
    if weight.group_inputs != INT4_GROUP_INPUTS:
        raise ModelUnsupported(
            f"the CPU's kernels cover groups of {INT4_GROUP_INPUTS} inputs, not of"
            f" {weight.group_inputs}"
        )
    return NativeForm(weight.steps, groups=(weight.scales.contiguous(), weight.lows.contiguous()))


def _widened_form(weight: LinearWeight) -> NativeForm:
    return NativeForm(weight.dequantised().to(weight.dtype))


# Kinds that the kernels have no format for. Bytes with a scale per output they have.
WIDENED_HERE: tuple[type[Any], ...] = (Fp8BlockWeight, Int4GroupWeight, Int8GroupWeight)
NATIVE_KINDS: Mapping[type[Any], NativeKind] = {
    PlainWeight: NativeKind(WeightFormat.PLAIN, lambda weight: NativeForm(weight.values)),
    **dict.fromkeys(WIDENED_HERE, NativeKind(WeightFormat.PLAIN, _widened_form)),
    # Float8 is exact in bfloat16, and the scales come behind the sums: nothing is rounded.
    Fp8Weight: NativeKind(
        WeightFormat.PLAIN,
        lambda weight: NativeForm(weight.values.to(weight.dtype), weight.scales),
    ),
    Int8Weight: NativeKind(
        WeightFormat.INT8, lambda weight: NativeForm(weight.values, weight.scales)
    ),
    Int4Weight: NativeKind(WeightFormat.INT4, _int4_form),
}


def interleaved(values: Tensor, half: int, width: int) -> Tensor:
    """Return rows of gate, then of up, as panels of both that alternate, `half` rows of each."""
    halves = values.view(2, -1, *values.shape[1:])
    full = values.new_zeros((2, half, *values.shape[1:]))
    full[:, : halves.shape[1]] = halves
    panels = full.view(2, half // width, width, *values.shape[1:]).transpose(0, 1)
    return panels.reshape(2 * half, *values.shape[1:])
