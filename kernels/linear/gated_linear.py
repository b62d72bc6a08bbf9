"""Gate and up projection of dozens of rows with the activation behind: one launch, one write."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from tokenbus.kernels.activation import KINDS, gate, gated_act
from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    release_successor,
    require,
    require_contiguous,
    wait_for_inputs,
)
from tokenbus.kernels.linear.many_rows import many_rows, takes_many_rows

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.activation import ActivationKind


@dataclass(frozen=True, slots=True)
class GatedTuning:
    """How one shape is laid out: rows, outputs and columns per step of a program."""

    block_m: int
    block_n: int
    block_k: int
    stages: int
    num_warps: int


# Rows from which on one tile of the matrix unit is worth its padding, and up to which cuBLAS plus
# the activation is slower; swept on an H200. With fewer rows it won 10 to 20 % in a chain of its
# own kind, and lost as much in a model.
MIN_ROWS, MAX_ROWS = 17, 128
_TILE_ROWS = 64
# Weights of more bytes than this stream from memory, smaller ones wait for their first tile.
_STREAMED_BYTES = 100_000_000
# Narrower inputs would leave the queues below half empty.
_MIN_WIDTH = 512


def choose_gated_tuning(num_rows: int, weight: Tensor) -> GatedTuning | None:
    """Pick the layout; None where cuBLAS followed by the activation is as fast.

    The queues are laid out for elements of two bytes, whose rows begin at multiples of 16 bytes,
    as tensor descriptors want it.
    """
    fits = weight.element_size() == 2 and weight.shape[1] >= _MIN_WIDTH and weight.shape[1] % 8 == 0
    if not fits or not MIN_ROWS <= num_rows <= MAX_ROWS:
        return None
    if weight.numel() * weight.element_size() >= _STREAMED_BYTES:
        if num_rows <= 32:
            return GatedTuning(32, 128, 128, 3, 4)
        if num_rows <= _TILE_ROWS:
            return GatedTuning(64, 64, 128, 4, 4)
        return GatedTuning(128, 128, 64, 4, 8)
    if num_rows <= 32:
        return None
    if num_rows <= _TILE_ROWS:
        return GatedTuning(64, 32, 128, 6, 4)
    return GatedTuning(128, 32, 128, 4, 4)


@triton.jit(do_not_specialize=["M"])
def _gated_linear_kernel(
    x, weight, bias, out, M, N, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr, HAS_BIAS: tl.constexpr, ACT: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute [BLOCK_M, BLOCK_N] outputs; x and weight are tensor descriptors.

    Row tiles of the same columns are neighbours, so that all but the first read the weights from
    the L2 cache. Rows and columns beyond the edge arrive as zeros.
    """
    release_successor(PDL)
    tiles_m = tl.cdiv(M, BLOCK_M)
    pid = tl.program_id(0)
    row = (pid % tiles_m) * BLOCK_M
    col = (pid // tiles_m) * BLOCK_N
    gates = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    ups = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    wait_for_inputs(PDL)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        value = x.load([row, start])
        gates = tl.dot(value, weight.load([col, start]).T, gates, input_precision=PRECISION)
        ups = tl.dot(value, weight.load([N + col, start]).T, ups, input_precision=PRECISION)
    rows = row.to(tl.int64) + tl.arange(0, BLOCK_M)
    cols = col + tl.arange(0, BLOCK_N)
    live = cols < N
    if HAS_BIAS:
        gates += tl.load(bias + cols, mask=live, other=0.0).to(tl.float32)[None, :]
        ups += tl.load(bias + N + cols, mask=live, other=0.0).to(tl.float32)[None, :]
    place = rows[:, None] * N + cols[None, :]
    mask = (rows < M)[:, None] & live[None, :]
    tl.store(out + place, (gate(gates, ACT) * ups).to(out.dtype.element_ty), mask=mask)


def gated_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    act: ActivationKind,
    *,
    tuning: GatedTuning | None = None,
) -> Tensor:
    """Return act(x Wg^T + bg) * (x Wu^T + bu).

    Goes through `many_rows`, or cuBLAS and `gated_act`, for numbers of rows at which they are as
    fast, unless `tuning` is given.

    Args:
        x: [M, K], contiguous. weight: [2 N, K], contiguous, gate rows first, dtype of x.
        bias: [2 N] or None.
    Returns: [M, N], dtype of x; sums and activation in fp32. Twin: reference.fused_linear.
    Raises: KernelInputError on other shapes or an unknown activation.
    """
    num_rows, width_in = x.shape
    require(act in KINDS, f"unknown activation {act!r}, have {KINDS}")
    require(weight.shape[1] == width_in, f"x is {width_in} wide, weight {weight.shape[1]}")
    require(weight.shape[0] % 2 == 0, f"gate and up have {weight.shape[0]} rows together")
    require(weight.dtype == x.dtype, f"x is {x.dtype}, weight is {weight.dtype}")
    require_contiguous(x=x, weight=weight, bias=bias)
    width_out = weight.shape[0] // 2
    tuning = tuning or choose_gated_tuning(num_rows, weight)
    if tuning is None and bias is None and takes_many_rows(x, weight, width_out):
        return many_rows(x, weight, act)
    if tuning is None:
        return gated_act(F.linear(x, weight, bias), act)
    out = x.new_empty(num_rows, width_out)
    grid = (ceil_div(num_rows, tuning.block_m) * ceil_div(width_out, tuning.block_n),)
    _gated_linear_kernel[grid](
        TensorDescriptor.from_tensor(x, [tuning.block_m, tuning.block_k]),
        TensorDescriptor.from_tensor(weight, [tuning.block_n, tuning.block_k]),
        bias,
        out,
        num_rows,
        width_out,
        K=width_in,
        BLOCK_M=tuning.block_m,
        BLOCK_N=tuning.block_n,
        BLOCK_K=tuning.block_k,
        STAGES=tuning.stages,
        HAS_BIAS=bias is not None,
        ACT=act,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=tuning.num_warps,
        **dependent_launch(x.device),
    )
    return out
