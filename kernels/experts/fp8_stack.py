"""Experts in FP8 as kernels take them: numbers of e4m3 and their scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenbus.kernels.launch import require
from tokenbus.kernels.linear.fp8_shapes import check_fp8_weight

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
        """Raise KernelInputError for what the kernels cannot fetch."""
        check_fp8_weight(self.values, self.scales, self.block_outputs)

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
