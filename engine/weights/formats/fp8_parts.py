"""Float8 and int8 as they are stored: a matrix of them, and scales that multiply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.models.linear_weight import (
    Fp8BlockWeight,
    Fp8Weight,
    Int8GroupWeight,
    Int8Weight,
)
from tokenbus.engine.weights.formats.quantised_part import (
    SCALE_FLOATS,
    QuantisedPart,
    per_output,
    whole_scale_shapes,
)
from tokenbus.engine.weights.rounding import round_to_fp8, round_to_int8

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.models.linear_weight import LinearWeight
    from tokenbus.engine.weights.readers import LinearShape

_FP8 = (torch.float8_e4m3fn,)
_ONE = ((), (1,))


@dataclass(frozen=True, slots=True)
class Fp8Format:
    """Float8 with one scale for a matrix, or one per output.

    scale_names: what the scale may be called, one of them comes; input_scale_names: what a static
    scale of the activations may be called, which may be missing.
    """

    scale_names: tuple[str, ...] = ("weight_scale",)
    input_scale_names: tuple[str, ...] = ("input_scale",)

    def open(self, name: str, num_outputs: int, shape: LinearShape) -> QuantisedPart:
        """Begin a matrix."""
        return _Fp8Part(self, name, num_outputs, shape)


class _Fp8Part(QuantisedPart):
    """`weight` float8, its scale, and what may come beside it."""

    def __init__(self, form: Fp8Format, name: str, num_outputs: int, shape: LinearShape) -> None:
        super().__init__(name, num_outputs, shape)
        sizes = whole_scale_shapes(num_outputs)
        single = len(form.scale_names) == 1
        self._values = self.keep("weight", _FP8, [(num_outputs, shape.num_inputs)])
        self._scales = [
            self.keep(last, SCALE_FLOATS, sizes, is_required=single) for last in form.scale_names
        ]
        self._inputs = [
            self.keep(last, SCALE_FLOATS, _ONE, is_required=False)
            for last in form.input_scale_names
        ]
        zero_dtypes = (*_FP8, torch.int8, *SCALE_FLOATS)
        self._zero = self.keep("weight_zero_point", zero_dtypes, sizes, is_required=False)

    def weight(self) -> LinearWeight:
        """Return the values with a scale per output."""
        scale = self.only(self._scales, "the scale")
        self.refuse_nonzero(self._zero)
        input_scale = None
        if any(slot.is_filled for slot in self._inputs):
            input_scale = float(self.only(self._inputs, "the activations' scale"))
        return Fp8Weight(
            self._values.tensor, per_output(scale, self.num_outputs), self.dtype, input_scale
        )

    def random(self, values: Tensor) -> LinearWeight:
        """Round the values."""
        return round_to_fp8(values)


@dataclass(frozen=True, slots=True)
class Fp8BlockFormat:
    """Float8 with a scale per block of outputs and inputs."""

    block_outputs: int
    block_inputs: int
    scale_name: str = "weight_scale_inv"

    def open(self, name: str, num_outputs: int, shape: LinearShape) -> QuantisedPart:
        """Begin a matrix."""
        return _Fp8BlockPart(self, name, num_outputs, shape)


class _Fp8BlockPart(QuantisedPart):
    """`weight` float8 and the scales of its blocks, which multiply whatever they are called."""

    def __init__(
        self, form: Fp8BlockFormat, name: str, num_outputs: int, shape: LinearShape
    ) -> None:
        super().__init__(name, num_outputs, shape)
        self._form = form
        self.refuse_cut(outputs=form.block_outputs, inputs=form.block_inputs)
        rows = -(-num_outputs // form.block_outputs)
        columns = -(-shape.num_inputs // form.block_inputs)
        self._size = (rows, columns)
        self._values = self.keep("weight", _FP8, [(num_outputs, shape.num_inputs)])
        self._scale = self.keep(form.scale_name, SCALE_FLOATS, [self._size, (rows, 1, columns, 1)])

    def weight(self) -> LinearWeight:
        """Return the values with their blocks' scales."""
        scales = self.only([self._scale], "the scales").float().reshape(self._size)
        return self._made(self._values.tensor, scales)

    def random(self, values: Tensor) -> LinearWeight:
        """Round the values, all blocks by the largest of them."""
        scale = values.abs().amax().float().clamp_(min=1e-30) / torch.finfo(_FP8[0]).max
        rounded = (values.float() / scale).to(_FP8[0])
        return self._made(rounded, scale.expand(self._size).contiguous())

    def _made(self, values: Tensor, scales: Tensor) -> Fp8BlockWeight:
        form = self._form
        return Fp8BlockWeight(values, scales, form.block_outputs, form.block_inputs, self.dtype)


@dataclass(frozen=True, slots=True)
class Int8Format:
    """Int8 with one scale for a matrix, one per output, or one per group of inputs.

    group_inputs: inputs of a group, None for whole rows; has_zeros: a zero point with each scale.
    """

    group_inputs: int | None
    has_zeros: bool

    def open(self, name: str, num_outputs: int, shape: LinearShape) -> QuantisedPart:
        """Begin a matrix."""
        return _Int8Part(self, name, num_outputs, shape)


class _Int8Part(QuantisedPart):
    """`weight` int8 and its scales."""

    def __init__(self, form: Int8Format, name: str, num_outputs: int, shape: LinearShape) -> None:
        super().__init__(name, num_outputs, shape)
        self._form = form
        self._group = form.group_inputs or shape.num_inputs
        self.refuse_cut(inputs=form.group_inputs or 1)
        if form.group_inputs is None:
            sizes = whole_scale_shapes(num_outputs)
        else:
            sizes = ((num_outputs, -(-shape.num_inputs // self._group)),)
        self._values = self.keep("weight", (torch.int8,), [(num_outputs, shape.num_inputs)])
        self._scale = self.keep("weight_scale", SCALE_FLOATS, sizes)
        self._zero = self.keep(
            "weight_zero_point", (torch.int8,), sizes, is_required=form.has_zeros
        )
        # Static scales of activations in 8 bits, which are not rounded here.
        for last in ("input_scale", "input_zero_point"):
            self.keep(last, (torch.int8, *SCALE_FLOATS), _ONE, is_required=False)

    def weight(self) -> LinearWeight:
        """Return the values with a scale per output where that is all, else in groups."""
        scale = self.only([self._scale], "the scale")
        values, num_outputs = self._values.tensor, self.num_outputs
        if not self._form.has_zeros:
            self.refuse_nonzero(self._zero)
        if self._form.group_inputs is None and not self._form.has_zeros:
            return Int8Weight(values, per_output(scale, num_outputs), self.dtype)
        scales = scale.reshape(-1, scale.shape[1] if scale.dim() > 1 else 1)
        scales = scales.expand(num_outputs, -1).contiguous()
        zeros = torch.full(scales.shape, 128, dtype=torch.int16, device=self.device)
        if self._form.has_zeros:
            zeros += self._zero.tensor.reshape(-1, scales.shape[1]).to(torch.int16)
        # The same bits, counted from -128 on.
        steps = values.view(torch.uint8) ^ 128
        return Int8GroupWeight(steps, scales, zeros, self._group, self.dtype)

    def random(self, values: Tensor) -> LinearWeight:
        """Round the values."""
        if self._form.group_inputs is not None or self._form.has_zeros:
            raise ModelUnsupported("random weights are not drawn as int8 in groups")
        return round_to_int8(values)
