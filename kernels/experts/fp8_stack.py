"""Experts in FP8 as kernels take them: numbers of e4m3 and their scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tokenbus.kernels.launch import ceil_div, require, require_contiguous
from tokenbus.kernels.quantize import FP8, GROUP

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Fp8Stack:
    """The matrices of all experts, one above the other, in e4m3.

    values: [E * out, in] float8_e4m3fn, contiguous. scales: [E * out] float32, of the outputs; or,
    if block_outputs is not 0, [ceil(E * out / block_outputs), ceil(in / 128)], of blocks of which
    none spans two experts.
    """

    values: Tensor
    scales: Tensor
    block_outputs: int = 0

    def check(self) -> None:
        """Raise KernelInputError for what the kernels cannot fetch.

        Rows of a tensor descriptor begin at multiples of 16 bytes, those of the outputs too.
        """
        (rows, inputs), block = self.values.shape, self.block_outputs
        size = (ceil_div(rows, block), ceil_div(inputs, GROUP)) if block else (rows,)
        require(self.values.dtype == FP8, f"experts are {self.values.dtype}, not {FP8}")
        require(self.scales.dtype == torch.float32, f"scales are {self.scales.dtype}")
        require(self.scales.shape == size, f"scales are {tuple(self.scales.shape)}, not {size}")
        require(
            rows % 16 == 0 and inputs % 16 == 0,
            f"{rows} outputs and {inputs} inputs: 16 does not divide both",
        )
        require_contiguous(values=self.values, scales=self.scales)

    def check_product(self, width_in: int, outputs: int) -> None:
        """Raise KernelInputError unless these are experts of so many inputs and outputs."""
        self.check()
        require(self.values.shape[1] == width_in, f"x is {width_in} wide, the experts differ")
        require(
            self.values.shape[0] % outputs == 0,
            f"{self.values.shape[0]} outputs are no experts of {outputs}",
        )
        blocks = self.block_outputs
        require(blocks == 0 or outputs % blocks == 0, f"blocks of {blocks} in {outputs} outputs")
