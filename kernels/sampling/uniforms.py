"""The uniforms of a step's draws in one launch: SplitMix64 at a counter per row."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.launch import ceil_div, require

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 128


@triton.jit(
    do_not_specialize=["num_rows", "key_stride", "increment_stride"],
    do_not_specialize_on_alignment=["keys", "increments", "positions"],
)
def _uniforms_kernel(
    keys, increments, positions, out, num_rows, key_stride, increment_stride, BLOCK: tl.constexpr
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = rows < num_rows
    key = tl.load(keys + rows * key_stride, mask=live, other=0).to(tl.uint64)
    increment = tl.load(increments + rows * increment_stride, mask=live, other=0).to(tl.uint64)
    counter = (tl.load(positions + rows, mask=live, other=0) + 1).to(tl.uint64)
    z = key + counter * increment
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    # The 53 high bits fill the mantissa of a double.
    tl.store(out + rows, (z >> 11).to(tl.float64) * 1.1102230246251565e-16, mask=live)


def row_uniforms(keys: Tensor, increments: Tensor, positions: Tensor) -> Tensor:
    """Return the uniform of each row at its position, bit for bit that of the engine's stream.

    Args: keys, increments: [M] int64, any stride; positions: [M] int64, contiguous, from 0.
    Returns: [M] float64 in [0, 1).
    Raises: KernelInputError for other shapes. Twin: engine.sampling.random_draw.uniforms.
    Source: SplitMix64 (Steele, Lea, Flood 2014).
    """
    num_rows = positions.shape[0]
    for name, tensor in (("keys", keys), ("increments", increments), ("positions", positions)):
        require(tensor.shape == (num_rows,), f"{name} is {tuple(tensor.shape)}, not [{num_rows}]")
        require(tensor.dtype == torch.int64, f"{name} is {tensor.dtype}")
    require(positions.is_contiguous(), "positions must be contiguous")
    out = torch.empty(num_rows, dtype=torch.float64, device=positions.device)
    if num_rows:
        _uniforms_kernel[(ceil_div(num_rows, _BLOCK),)](
            keys, increments, positions, out, num_rows, keys.stride(0), increments.stride(0),
            BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
    return out
