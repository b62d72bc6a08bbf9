"""Packed weights of 4 and 8 bits: as compressed-tensors, AWQ and GPTQ store them."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING

import torch

from tokenbus.engine.errors import ModelBroken
from tokenbus.engine.models.linear_weight import Int8Weight
from tokenbus.engine.weights.formats.packed_bits import (
    group_weight,
    order_of_groups,
    refuse_odd,
    unpacked,
)
from tokenbus.engine.weights.formats.quantised_part import SCALE_FLOATS, QuantisedPart, per_output
from tokenbus.engine.weights.rounding import round_to_int8

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.models.linear_weight import LinearWeight
    from tokenbus.engine.weights.readers import LinearShape

_INTS = (torch.int32, torch.int64)
# Numbers of a word from its lowest bits on: AutoAWQ's GEMM kernel takes them apart in pairs.
_AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)


class _PackedPart(QuantisedPart):
    """What all packed parts share: bits, groups, and made-up weights."""

    def __init__(
        self, name: str, num_outputs: int, shape: LinearShape, bits: int, group_inputs: int | None
    ) -> None:
        super().__init__(name, num_outputs, shape)
        refuse_odd(name, shape.num_inputs, 2, "inputs")
        self._bits = bits
        self._group = group_inputs or shape.num_inputs
        self._num_groups = -(-shape.num_inputs // self._group)
        per_word = 32 // bits
        self.refuse_cut(outputs=per_word, inputs=lcm(per_word, group_inputs or 1))

    def random(self, values: Tensor) -> LinearWeight:
        """Round the values, all by one scale, around the middle of the steps."""
        middle = 2 ** (self._bits - 1)
        scale = values.abs().amax().float().clamp_(min=1e-30) / (middle - 1)
        steps = (values.float() / scale + middle).round_().clamp_(0, 2 * middle - 1)
        scales = scale.to(self.dtype).expand(self.num_outputs, self._num_groups)
        zeros = torch.full_like(scales, middle, dtype=torch.int16)
        return self._made(steps.to(torch.uint8), scales, zeros)

    def _made(
        self, steps: Tensor, scales: Tensor, zeros: Tensor, order: Tensor | None = None
    ) -> LinearWeight:
        return group_weight(
            steps, scales, zeros, self._group, self.dtype, bits=self._bits, order=order
        )


@dataclass(frozen=True, slots=True)
class PackedFormat:
    """compressed-tensors' `pack-quantized`: along inputs, counted from -2^(bits-1) on.

    group_inputs: None for whole rows. has_order: each input names its group.
    """

    bits: int
    group_inputs: int | None
    has_zeros: bool
    has_order: bool

    def open(self, name: str, num_outputs: int, shape: LinearShape) -> QuantisedPart:
        """Begin a matrix."""
        return _CompressedPart(self, name, num_outputs, shape)


class _CompressedPart(_PackedPart):
    """`weight_packed`, its scales, zero points packed along outputs, and the groups of inputs."""

    def __init__(self, form: PackedFormat, name: str, num_outputs: int, shape: LinearShape) -> None:
        super().__init__(name, num_outputs, shape, form.bits, form.group_inputs)
        self._form = form
        per_word, groups = 32 // form.bits, self._num_groups
        words = -(-shape.num_inputs // per_word)
        self._packed = self.keep("weight_packed", (torch.int32,), [(num_outputs, words)])
        # One scale for a matrix is what the strategy `tensor` has.
        sizes = [(num_outputs, groups), *([] if form.group_inputs else [(), (1,), (num_outputs,)])]
        self._scale = self.keep("weight_scale", SCALE_FLOATS, sizes)
        self._shape = self.keep("weight_shape", _INTS, [(2,)], is_required=False)
        packed_outputs = -(-num_outputs // per_word)
        self._zero = self.keep(
            "weight_zero_point",
            (torch.int32, torch.int8),
            [(packed_outputs, groups), (num_outputs, groups)],
            is_required=form.has_zeros,
        )
        self._groups = self.keep(
            "weight_g_idx", _INTS, [(shape.num_inputs,)], is_required=form.has_order
        )

    def weight(self) -> LinearWeight:
        """Return steps with their scales; bytes with a scale per output where that is all."""
        self._check_shape()
        form, num_outputs, middle = self._form, self.num_outputs, 2 ** (self._form.bits - 1)
        steps = unpacked(self._packed.tensor, form.bits)[:, : self.num_inputs]
        scale = self.only([self._scale], "the scale")
        if not form.has_zeros:
            self.refuse_nonzero(self._zero)
        order = None
        if self._groups.is_filled:
            order = order_of_groups(self._groups.name, self._groups.tensor, self._group)
            steps = steps if order is None else steps[:, order]
        if self._is_by_outputs and order is None:
            values = (steps ^ 128).view(torch.int8).contiguous()
            return Int8Weight(values, per_output(scale, num_outputs), self.dtype)
        scales = scale.reshape(-1, self._num_groups).expand(num_outputs, -1)
        zeros = torch.full_like(scales, middle, dtype=torch.int16)
        if form.has_zeros:
            zeros = self._zeros(middle)
        return self._made(steps, scales, zeros, order)

    def random(self, values: Tensor) -> LinearWeight:
        """Round the values, to the kind that `weight` makes."""
        return round_to_int8(values) if self._is_by_outputs else super().random(values)

    @property
    def _is_by_outputs(self) -> bool:
        """Tell whether bytes with a scale per output are all there is."""
        form = self._form
        return form.bits == 8 and form.group_inputs is None and not form.has_zeros

    def _zeros(self, middle: int) -> Tensor:
        """Return the zero points, counted from 0 on: [out, groups] int16."""
        zero = self._zero.tensor
        if zero.dtype is torch.int8:
            if zero.shape[0] != self.num_outputs:
                raise ModelBroken(f"{self._zero.name} is int8 and not one per output and group")
            return zero.to(torch.int16) + middle
        if zero.shape[0] == self.num_outputs and self.num_outputs > 1:
            raise ModelBroken(f"{self._zero.name} is int32 and not packed along outputs")
        found = unpacked(zero.T.contiguous(), self._form.bits)[:, : self.num_outputs]
        return found.T.to(torch.int16)

    def _check_shape(self) -> None:
        if self._shape.is_filled:
            told = tuple(self._shape.tensor.tolist())
            if told != (self.num_outputs, self.num_inputs):
                raise ModelBroken(
                    f"{self._shape.name} says {list(told)}, the config asks for"
                    f" {[self.num_outputs, self.num_inputs]}"
                )


@dataclass(frozen=True, slots=True)
class AwqFormat:
    """AutoAWQ's `gemm`: 4 bits packed along outputs in an order of their own, inputs by rows."""

    group_inputs: int | None

    def open(self, name: str, num_outputs: int, shape: LinearShape) -> QuantisedPart:
        """Begin a matrix."""
        return _AwqPart(self, name, num_outputs, shape)


class _AwqPart(_PackedPart):
    """`qweight` [in, out / 8], `qzeros` [groups, out / 8], `scales` [groups, out]."""

    def __init__(self, form: AwqFormat, name: str, num_outputs: int, shape: LinearShape) -> None:
        super().__init__(name, num_outputs, shape, 4, form.group_inputs)
        refuse_odd(name, num_outputs, 8, "outputs")
        refuse_odd(name, shape.num_inputs, self._group, "inputs in groups")
        words, groups = num_outputs // 8, self._num_groups
        self._steps = self.keep("qweight", (torch.int32,), [(shape.num_inputs, words)])
        self._zeros = self.keep("qzeros", (torch.int32,), [(groups, words)])
        self._scales = self.keep("scales", SCALE_FLOATS, [(groups, num_outputs)])

    def weight(self) -> LinearWeight:
        """Return steps, scales and zeros, outputs first."""
        steps = unpacked(self._steps.tensor, 4, _AWQ_PLACES).T
        zeros = unpacked(self._zeros.tensor, 4, _AWQ_PLACES).T
        return self._made(steps, self.only([self._scales], "the scales").T, zeros)


@dataclass(frozen=True, slots=True)
class GptqFormat:
    """GPTQ: steps packed along inputs, zero points along outputs.

    zeros_less_one: the zero points are stored less one, as the first version of the format has
    them. has_order: inputs are in groups by `g_idx`, not by their place.
    """

    bits: int
    group_inputs: int | None
    zeros_less_one: bool
    has_order: bool

    def open(self, name: str, num_outputs: int, shape: LinearShape) -> QuantisedPart:
        """Begin a matrix."""
        return _GptqPart(self, name, num_outputs, shape)


class _GptqPart(_PackedPart):
    """`qweight` [in * bits / 32, out], `qzeros` [groups, out * bits / 32], `scales`, `g_idx`."""

    def __init__(self, form: GptqFormat, name: str, num_outputs: int, shape: LinearShape) -> None:
        super().__init__(name, num_outputs, shape, form.bits, form.group_inputs)
        self._form = form
        per_word, groups = 32 // form.bits, self._num_groups
        refuse_odd(name, shape.num_inputs, per_word, "inputs")
        refuse_odd(name, num_outputs, per_word, "outputs")
        num_words = shape.num_inputs // per_word
        self._steps = self.keep("qweight", (torch.int32,), [(num_words, num_outputs)])
        self._zeros = self.keep("qzeros", (torch.int32,), [(groups, num_outputs // per_word)])
        self._scales = self.keep("scales", SCALE_FLOATS, [(groups, num_outputs)])
        self._groups = self.keep("g_idx", _INTS, [(shape.num_inputs,)], is_required=form.has_order)

    def weight(self) -> LinearWeight:
        """Return steps, scales and zeros, outputs first, inputs in the order of their groups."""
        steps = unpacked(self._steps.tensor.T.contiguous(), self._form.bits)
        zeros = unpacked(self._zeros.tensor, self._form.bits).T.to(torch.int16)
        if self._form.zeros_less_one:
            zeros = zeros + 1
        order = self._order()
        steps = steps if order is None else steps[:, order]
        scales = self.only([self._scales], "the scales").T
        return self._made(steps, scales, zeros, order)

    def _order(self) -> Tensor | None:
        if not self._groups.is_filled:
            return None
        groups, name = self._groups.tensor, self._groups.name
        if not self._form.has_order and not bool(groups.any()):
            # Left empty where inputs are in groups by their place.
            return None
        order = order_of_groups(name, groups, self._group)
        if order is not None and not self._form.has_order:
            raise ModelBroken(f"{name} orders the inputs, though the config says desc_act: false")
        return order
