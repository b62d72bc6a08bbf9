"""Load check: what a device makes of quantised weights, and what these stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.models.linear_weight import PlainWeight
from tokenbus.kernels.compile_ahead import compiling_ahead

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.models.layers import DecoderTensors, Linear

_NUM_OUTPUTS = 64
_NUM_ROWS = 2
# |difference| / |expected|. Activations rounded to float8 cost 0.03; scales at the wrong place, or
# halves of a byte in the wrong order, give more than 0.5.
_TOLERANCE = 0.15


@dataclass(frozen=True, slots=True)
class _Sample:
    """Some outputs of one linear: of x [rows, in], those of `outputs` should be `expected`."""

    linear: Linear
    kind: str
    outputs: Tensor
    x: Tensor
    expected: Tensor

    def check(self) -> None:
        found = self.linear.product.multiply(self.x).float()[:, self.outputs]
        error = float((found - self.expected).norm() / self.expected.norm().clamp_min(1e-30))
        # A comparison that NaN fails.
        if not error < _TOLERANCE:
            raise ModelUnsupported(
                f"{self.kind} weights of {list(self.linear.weight.shape)} are not multiplied"
                f" rightly on this device: the products are {error:.1g} of their size off"
            )


class LoadCheck:
    """A few products of the first layer, noted before its weights are packed.

    It costs less than a second and is made of quantised weights alone.
    """

    def __init__(self, tensors: DecoderTensors) -> None:
        """Note what products should be."""
        first = tensors.layers[0]
        self._samples = [
            _sample(linear)
            for linear in (first.qkv, *first.mlp.linears()[-1:])
            if not isinstance(linear.weight, PlainWeight)
        ]

    def run(self) -> None:
        """Compare, where linears are bound to products of their own.

        Raises: ModelUnsupported with the kind of weight whose products are wrong.
        """
        bound = [
            sample
            for sample in self._samples
            if getattr(sample.linear, "product", None) is not None
        ]
        if any(sample.x.is_cuda for sample in bound):
            # Their kernels are compiled side by side.
            with compiling_ahead():
                for sample in bound:
                    sample.linear.product.multiply(sample.x)
        for sample in bound:
            sample.check()


def _sample(linear: Linear) -> _Sample:
    weight, bias = linear.weight, linear.bias
    values = weight.dequantised()
    num_outputs, num_inputs = values.shape
    outputs = torch.linspace(0, num_outputs - 1, min(_NUM_OUTPUTS, num_outputs)).long()
    outputs = outputs.to(values.device)
    # A pattern of all signs and sizes, the same in every run, without the generator's state.
    places = torch.arange(_NUM_ROWS * num_inputs, device=values.device)
    x = torch.sin(places * 1.618 + 1).view(_NUM_ROWS, num_inputs).to(weight.dtype)
    chosen = None if bias is None else bias.float()[outputs]
    expected = F.linear(x.float(), values[outputs], chosen)
    return _Sample(linear, type(weight).__name__, outputs, x, expected)
