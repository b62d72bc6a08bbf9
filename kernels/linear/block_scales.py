"""Scales of FP8 weights in blocks of 128 columns: what products of a part of the columns get."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

# Columns of a lone row's product that a thread sums before it scales them: its 16 bytes of a load.
PART = tl.constexpr(16)
_GROUP = tl.constexpr(128)


@triton.jit
def load_by_row(x_scales, group_stride, rows, M, block):
    """Load the scales of some rows for a block of columns, zeros from row M on."""
    return tl.load(x_scales + block * group_stride + rows, mask=rows < M, other=0.0)


@triton.jit
def load_by_output(scales, first, outputs, N, block, GROUPS: tl.constexpr, BLOCK_OUT: tl.constexpr,
                   ONE_SCALE: tl.constexpr):  # fmt: skip
    """Load the scales of outputs from `first` on for a block of columns, or the one they share."""
    if ONE_SCALE:
        scale = tl.load(scales + first // BLOCK_OUT * GROUPS + block)
    else:
        place = scales + outputs // BLOCK_OUT * GROUPS + block
        scale = tl.load(place, mask=outputs < N, other=0.0)
    return scale


@triton.jit
def multiplied(by_line, by_column, ONE_SCALE: tl.constexpr):
    """Return what a product is multiplied by, scales of its columns being one number or several."""
    return (by_line * by_column)[:, None] if ONE_SCALE else by_line[:, None] * by_column[None, :]


@triton.jit
def load_parts(scales, row, block, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Load the scales of a row of blocks for BLOCK_K columns, one for each PART of them."""
    GROUPS: tl.constexpr = (K + _GROUP - 1) // _GROUP
    part = block * (BLOCK_K // PART) + tl.arange(0, BLOCK_K // PART)
    # Beyond the last column all numbers are zero.
    return tl.load(scales + row * GROUPS + tl.minimum(part * PART // _GROUP, GROUPS - 1))


@triton.jit
def part_sums(w, value):
    """w: [outputs, columns], value: [1 or outputs, columns] -> sums of their products by parts."""
    product = w.to(tl.float32) * value
    parts = tl.reshape(product, (w.shape[0], w.shape[1] // PART, PART))
    return tl.sum(parts, axis=2)
