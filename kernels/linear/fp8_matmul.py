"""FP8 matrix products of many rows: e4m3 times e4m3, by a kernel of Triton or by cuBLAS."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch.nn.functional import ScalingType, scaled_mm

from tokenbus.kernels.launch import release_successor, wait_for_inputs
from tokenbus.kernels.linear.block_scales import load_by_output, load_by_row, multiplied

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.quantize import QuantizedRows


@dataclass(frozen=True, slots=True)
class MatmulTuning:
    """How one shape is laid out: rows, outputs and columns per step of a tile.

    stages: steps in flight. group: row tiles that are worked on together, so that their weights are
    read from the L2 cache. halves: the tile is written in two halves, which takes half the memory
    beside the steps in flight. programs: on a multiprocessor at a time; with a scale per block one
    adds up what another multiplies.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    stages: int
    group: int = 8
    halves: bool = True
    programs: int = 1


@triton.jit
def _finish(acc, row_scales, scales, bias, first, N, BLOCK_N: tl.constexpr,
            BLOCK_OUT: tl.constexpr, HAS_BIAS: tl.constexpr):  # fmt: skip
    """Scale a tile of sums by rows and outputs if that is to be done yet, and add the bias."""
    cols = first + tl.arange(0, BLOCK_N)
    live = cols < N
    if BLOCK_OUT == 0:
        acc = acc * row_scales[:, None] * tl.load(scales + cols, mask=live, other=0.0)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias + cols, mask=live, other=0.0).to(tl.float32)[None, :]
    return acc


@triton.jit(do_not_specialize=["M"])
def fp8_matmul_kernel(
    x, x_scales, group_stride, weight, scales, bias, out, M, N, K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_OUT: tl.constexpr,
    ONE_SCALE: tl.constexpr, GROUP: tl.constexpr, PROGRAMS: tl.constexpr, HALVES: tl.constexpr,
    HAS_BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute [M, N] outputs tile by tile; x, weight and out are tensor descriptors.

    Programs stay for several tiles, so that one is written while the next is fetched. What lies
    beyond an edge arrives as zeros and is not written. If BLOCK_OUT is not 0, scales are those of
    blocks of so many outputs and BLOCK_K columns, x_scales of rows and BLOCK_K columns, and every
    step's product is scaled by itself, by numbers that were asked for a step before.
    """
    release_successor(PDL)
    GROUPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    wait_for_inputs(PDL)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, PROGRAMS, flatten=True):
        first_m = tile // (GROUP * tiles_n) * GROUP
        height = min(tiles_m - first_m, GROUP)
        row = (first_m + tile % (GROUP * tiles_n) % height) * BLOCK_M
        col = tile % (GROUP * tiles_n) // height * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        rows = row + tl.arange(0, BLOCK_M)
        outs = col + tl.arange(0, BLOCK_N)
        if BLOCK_OUT == 0:
            for step in range(GROUPS):
                value = x.load([row, step * BLOCK_K])
                w = weight.load([col, step * BLOCK_K])
                acc = tl.dot(value, w.T, acc)
        else:
            by_row = load_by_row(x_scales, group_stride, rows, M, 0)
            by_out = load_by_output(scales, col, outs, N, 0, GROUPS, BLOCK_OUT, ONE_SCALE)
            factor = multiplied(by_row, by_out, ONE_SCALE)
            for step in range(GROUPS):
                following = tl.minimum(step + 1, GROUPS - 1)
                by_row = load_by_row(x_scales, group_stride, rows, M, following)
                by_out = load_by_output(
                    scales, col, outs, N, following, GROUPS, BLOCK_OUT, ONE_SCALE
                )
                value = x.load([row, step * BLOCK_K])
                w = weight.load([col, step * BLOCK_K])
                acc += tl.dot(value, w.T) * factor
                factor = multiplied(by_row, by_out, ONE_SCALE)
        row_scales = None
        if BLOCK_OUT == 0:
            row_scales = tl.load(x_scales + rows, mask=rows < M, other=0.0)
        if HALVES:
            pair = tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1))
            left, right = tl.split(pair)
            left = _finish(
                left, row_scales, scales, bias, col, N, BLOCK_N // 2, BLOCK_OUT, HAS_BIAS
            )
            out.store([row, col], left.to(out.dtype))
            half = col + BLOCK_N // 2
            right = _finish(
                right, row_scales, scales, bias, half, N, BLOCK_N // 2, BLOCK_OUT, HAS_BIAS
            )
            out.store([row, half], right.to(out.dtype))
        else:
            acc = _finish(acc, row_scales, scales, bias, col, N, BLOCK_N, BLOCK_OUT, HAS_BIAS)
            out.store([row, col], acc.to(out.dtype))


def multiply_by_library(x: QuantizedRows, values: Tensor, scales: Tensor) -> Tensor:
    """Return cuBLAS's product of rows with a scale each and a weight with one per output.

    x: [M, K]; values: [N, K] e4m3; scales: [N] float32. Returns: [M, N] bfloat16.
    """
    product: Tensor = scaled_mm(
        x.values,
        values.T,
        x.scales[:, None],
        ScalingType.RowWise,
        scales[None, :],
        ScalingType.RowWise,
        use_fast_accum=True,
    )
    return product
