"""Rounding of plain weights, once, while a model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tokenbus.engine.models.linear_weight import (
    Fp8Weight,
    Int4GroupWeight,
    Int4Weight,
    Int8Weight,
)

if TYPE_CHECKING:
    from torch import Tensor

# Inputs that share a scale and a low: 5 bits a weight in all.
_GROUP_INPUTS = 32
# Inputs that share a scale and a whole zero point: 4.25 bits a weight.
_ZERO_GROUP_INPUTS = 128
_MAX_STEP = 15
_MAX_FP8 = torch.finfo(torch.float8_e4m3fn).max
# Outputs rounded at a time: their copies in float32 stay small beside the model.
_BLOCK_OUTPUTS = 1024


def round_to_int8(weight: Tensor) -> Int8Weight:
    """Round a weight [out, in] to bytes, the largest of each output to 127."""
    scales = weight.abs().amax(1).float().div_(127).clamp_(min=torch.finfo(torch.float32).tiny)
    values = (weight / scales[:, None]).round_().to(torch.int8)
    return Int8Weight(values, scales, weight.dtype)


def round_to_fp8(weight: Tensor) -> Fp8Weight:
    """Round a weight [out, in] to float8 e4m3, the largest of each output to 448."""
    blocks = [_fp8_block(block) for block in torch.split(weight, _BLOCK_OUTPUTS)]
    values, scales = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return Fp8Weight(values, scales, weight.dtype)


def round_to_int4(weight: Tensor) -> Int4Weight:
    """Round a weight [out, in] to 16 steps between the least and the largest of each group."""
    blocks = [_int4_block(block) for block in torch.split(weight, _BLOCK_OUTPUTS)]
    steps, scales, lows = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return Int4Weight(steps, scales, lows, _GROUP_INPUTS, weight.dtype)


def round_to_int4_groups(weight: Tensor) -> Int4GroupWeight:
    """Round a weight [out, in], in even, to 16 steps around a whole zero point per 128 inputs.

    Steps span a group's whole range: cutting off its ends for a smaller squared error costs more
    than it gains (benchmarks/RESULTS.md).
    """
    blocks = [_int4_groups_block(block) for block in torch.split(weight, _BLOCK_OUTPUTS)]
    steps, scales, zeros = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return Int4GroupWeight(steps, scales, zeros, _ZERO_GROUP_INPUTS, weight.dtype)


def _fp8_block(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return values and scales of some outputs, as Fp8Weight has them."""
    exact = weight.float()
    scales = exact.abs().amax(1).div_(_MAX_FP8).clamp_(min=torch.finfo(torch.float32).tiny)
    # A quotient may come out a rounding above 448, which float8 has no number for.
    values = (exact / scales[:, None]).clamp_(-_MAX_FP8, _MAX_FP8)
    return values.to(torch.float8_e4m3fn), scales


def _int4_block(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return steps, scales and lows of some outputs, as Int4Weight has them."""
    num_outputs, num_inputs = weight.shape
    padding = -num_inputs % _GROUP_INPUTS
    # Padded by the last input, which changes no group's least or largest.
    groups = F.pad(weight.float()[None], (0, padding), mode="replicate")[0]
    groups = groups.view(num_outputs, -1, _GROUP_INPUTS)
    lows = groups.amin(2).bfloat16()
    low = lows.float()
    scales = ((groups.amax(2) - low) / _MAX_STEP).bfloat16()
    scale = scales.float()[..., None]
    steps = ((groups - low[..., None]) / scale).round_().clamp_(0, _MAX_STEP)
    steps = torch.where(scale > 0, steps, 0.0).to(torch.uint8)
    pairs = steps.view(num_outputs, -1, 2)[:, : num_inputs // 2]
    return pairs[..., 0] | (pairs[..., 1] << 4), scales, lows


def _int4_groups_block(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return steps, scales and zeros of some outputs, as Int4GroupWeight has them."""
    num_outputs, num_inputs = weight.shape
    # Padded by zeros, which every group has a step for.
    groups = F.pad(weight.float(), (0, -num_inputs % _ZERO_GROUP_INPUTS))
    groups = groups.view(num_outputs, -1, _ZERO_GROUP_INPUTS)
    low, high = groups.amin(2).clamp_(max=0), groups.amax(2).clamp_(min=0)
    scales = ((high - low) / _MAX_STEP).bfloat16()
    # A group of zeros keeps nothing but its zero point.
    divisor = torch.where(scales > 0, scales.float(), 1.0)
    zeros = (-low / divisor).round_().clamp_(0, _MAX_STEP)
    steps = (groups / divisor[..., None]).round_().add_(zeros[..., None]).clamp_(0, _MAX_STEP)
    pairs = steps.to(torch.uint8).view(num_outputs, -1, 2)[:, : num_inputs // 2]
    return pairs[..., 0] | (pairs[..., 1] << 4), scales, zeros.to(torch.uint8)
