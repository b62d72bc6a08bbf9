"""The sum over the experts of a row, weighted, with the shared expert and the residual behind."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    next_power_of_2,
    release_successor,
    require,
    require_contiguous,
    wait_for_inputs,
)

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 1024
# Columns up to which a program has a whole row, so that the next norm can follow.
_MAX_NORMED = 8192


@dataclass(frozen=True, slots=True)
class Beside:
    """What is added to the weighted sum of a mixture.

    shared: [T, H], the expert that every row goes to, times the sigmoid of gate_logits if given:
    [T, 1], any stride between rows. residual: [T, H] float32, overwritten with the sum, of which
    the result is rounded.
    """

    shared: Tensor | None = None
    gate_logits: Tensor | None = None
    residual: Tensor | None = None

    @property
    def gate_stride(self) -> int:
        """Numbers from one row's gate to the next one's."""
        return 0 if self.gate_logits is None else self.gate_logits.stride(0)

    def check(self, num_rows: int, width: int) -> None:
        """Raise KernelInputError for what does not fit a result [num_rows, width]."""
        for name, tensor in (("shared", self.shared), ("residual", self.residual)):
            require(
                tensor is None or tensor.shape == (num_rows, width),
                f"{name} does not have the result's shape ({num_rows}, {width})",
            )
        gates = self.gate_logits
        require(gates is None or gates.shape == (num_rows, 1), "one gate per row")
        require(gates is None or self.shared is not None, "a gate of nothing")
        require(
            self.residual is None or self.residual.dtype == torch.float32,
            "residual is not float32",
        )
        require_contiguous(shared=self.shared, residual=self.residual)


NOTHING = Beside()


@dataclass(frozen=True, slots=True)
class NextNorm:
    """The norm that the sum goes through next. weight: [H]."""

    weight: Tensor
    eps: float

    @staticmethod
    def fits(width: int) -> bool:
        """Tell whether rows are short enough for it."""
        return width <= _MAX_NORMED


@triton.jit
def add_shared(value, shared, gate_logits, row, gate_stride, place, mask):
    """Add a row's shared expert, gated if there are gates."""
    if shared is not None:
        more = tl.load(shared + place, mask=mask, other=0.0).to(tl.float32)
        if gate_logits is not None:
            logit = tl.load(gate_logits + row * gate_stride).to(tl.float32)
            more *= 1.0 / (1.0 + tl.exp(-logit))
        value += more
    return value


@triton.jit
def _combine_kernel(
    pairs, weights, shared, gate_logits, residual, norm_weight, out, gate_stride, eps, H,
    TOP: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Sum BLOCK columns of a row; with a norm behind they are all columns."""
    release_successor(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < H
    wait_for_inputs(PDL)
    value = tl.zeros([BLOCK], tl.float32)
    for turn in tl.static_range(TOP):
        pair = row * TOP + turn
        part = tl.load(pairs + pair * H + cols, mask=mask, other=0.0).to(tl.float32)
        value += tl.load(weights + pair) * part
    place = row * H + cols
    value = add_shared(value, shared, gate_logits, row, gate_stride, place, mask)
    if residual is not None:
        value += tl.load(residual + place, mask=mask, other=0.0)
        tl.store(residual + place, value, mask=mask)
    if norm_weight is not None:
        scale = tl.load(norm_weight + cols, mask=mask, other=0.0).to(tl.float32)
        # What the norm sees is what the next layer would read.
        value = value.to(out.dtype.element_ty).to(tl.float32)
        value = value * tl.rsqrt(tl.sum(value * value) / H + eps) * scale
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)


def combine(
    pairs: Tensor, weights: Tensor, beside: Beside = NOTHING, norm: NextNorm | None = None
) -> Tensor:
    """Sum the experts of every row; with a norm, return what is behind it.

    Args:
        pairs: [T * top_k, H], contiguous, those of a row next to each other.
        weights: [T, top_k] float32, contiguous. beside: what is added.
    Returns: [T, H], dtype of pairs; everything is summed in fp32. Twin: reference.mix.
    Raises: KernelInputError on other shapes.
    """
    (num_rows, top_k), width = weights.shape, pairs.shape[1]
    require(pairs.shape[0] == num_rows * top_k, f"{pairs.shape[0]} pairs of {num_rows} rows")
    require(weights.dtype == torch.float32, f"weights are {weights.dtype}")
    require_contiguous(pairs=pairs, weights=weights)
    beside.check(num_rows, width)
    require(norm is None or norm.fits(width), f"a norm over {width} columns")
    block = _BLOCK if norm is None else next_power_of_2(width)
    out = pairs.new_empty(num_rows, width)
    _combine_kernel[(num_rows, ceil_div(width, block))](
        pairs,
        weights,
        beside.shared,
        beside.gate_logits,
        beside.residual,
        None if norm is None else norm.weight,
        out,
        beside.gate_stride,
        0.0 if norm is None else norm.eps,
        width,
        TOP=top_k,
        BLOCK=block,
        num_warps=4 if block <= _BLOCK else 8,
        **dependent_launch(pairs.device),
    )
    return out
