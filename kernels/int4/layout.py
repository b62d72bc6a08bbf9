"""Weights of four bits as the matrix units want them: packed once, when a model is loaded.

A block is 128 inputs of one output, 32 numbers of 16 bits with four steps each. Columns are dealt
out so that what a thread loads is what it hands to the matrix unit: of a block's column
32 m + 16 t + 8 h + 2 c + e the step lies in number 8 c + 2 m + e, bits 8 h + 4 t on. Two numbers
side by side (e = 0, 1) are one register, from which four masks take pairs for rows of two bytes,
and two masks take four steps each for rows of one. Eight outputs are a strip, whose blocks follow
one another: 512 bytes a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tokenbus.kernels.launch import KernelInputError, ceil_div, require, require_contiguous

if TYPE_CHECKING:
    from torch import Tensor

# Inputs of a block, numbers that hold them, outputs of a strip.
BLOCK, WORDS, STRIP = 128, 32, 8
# The fewest inputs that may share a scale: a thread's steps of one number m are as many.
LEAST_GROUP = 32
# The largest zero point: GPTQ's first version stores 15 as what stands for 16.
MAX_ZERO = 16


@dataclass(frozen=True, slots=True)
class PackedInt4:
    """A matrix [out, in] of four-bit steps, (step - zero) * scale, in blocks.

    words: [strips, blocks, 8, 32] int16. metas: [groups, out] int32, the zero point in the low half
    and the bits of the scale, of `scale_dtype`, in the high half. group: inputs of a group: 32, 64
    or 128; the groups are those of whole blocks. order: [in] int64, a permutation: column j is
    input order[j]; None where column j is input j.
    """

    words: Tensor
    metas: Tensor
    num_inputs: int
    group: int
    scale_dtype: torch.dtype
    order: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.metas.shape[1], self.num_inputs

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        return self.words.nbytes + self.metas.nbytes


def group_in_blocks(group_inputs: int, num_inputs: int) -> int | None:
    """Return the group that a block is cut into for groups of `group_inputs`, None if it cannot be.

    Groups that do not fit into a block, or a block into them, are cut into the largest parts that
    do, each with a copy of the scale.
    """
    if group_inputs >= num_inputs:
        return BLOCK
    group = gcd(group_inputs, BLOCK)
    return group if group >= LEAST_GROUP else None


def pack_int4(
    steps: Tensor,
    scales: Tensor,
    zeros: Tensor,
    group_inputs: int,
    order: Tensor | None = None,
) -> PackedInt4:
    """Pack a weight.

    Args:
        steps: [out, in / 2] uint8, of two neighbouring columns the first one in the low half.
        scales: [out, groups] float16, bfloat16 or float32, which is rounded to bfloat16.
        zeros: [out, groups] uint8, 0 to 16.
        group_inputs: inputs of every group but the last.
        order: [in] int64, of each column its input; None where they are the same.
    Raises: KernelInputError for sizes that do not fit together or groups that no block holds.
    """
    num_outputs, num_inputs = steps.shape[0], 2 * steps.shape[1]
    group = group_in_blocks(group_inputs, num_inputs)
    if group is None:
        raise KernelInputError(f"groups of {group_inputs} inputs; {LEAST_GROUP} has to divide them")
    num_groups = ceil_div(num_inputs, group_inputs)
    for name, tensor in (("scales", scales), ("zeros", zeros)):
        size = (num_outputs, num_groups)
        require(tensor.shape == size, f"{name} have shape {tuple(tensor.shape)}, not {size}")
    num_blocks = ceil_div(num_inputs, BLOCK)
    dtype = torch.bfloat16 if scales.dtype == torch.float32 else scales.dtype
    require(dtype.itemsize == 2, f"scales are {scales.dtype}")
    bits = scales.to(dtype).contiguous().view(torch.int16).to(torch.int32) << 16
    metas = bits | zeros.to(torch.int32)
    groups = torch.arange(num_blocks * BLOCK // group, device=steps.device) * group // group_inputs
    # Steps beyond the last input are zero and meet no input: any scale will do.
    metas = metas.T[groups.clamp_(max=num_groups - 1)].contiguous()
    return PackedInt4(_words(steps, num_blocks), metas, num_inputs, group, dtype, order)


def _words(steps: Tensor, num_blocks: int) -> Tensor:
    """Deal out steps, [out, in / 2] uint8 -> [strips, blocks, 8, 32] int16."""
    num_outputs, num_bytes = steps.shape
    padding = (0, num_blocks * BLOCK // 2 - num_bytes, 0, -num_outputs % STRIP)
    # A byte holds the steps of e = 0 and 1; m, t, h and c are the axes behind the blocks.
    parts = F.pad(steps, padding).view(-1, STRIP, num_blocks, 4, 2, 2, 4)
    sizes = (parts.shape[0], num_blocks, STRIP, 4, 4, 2)
    words = torch.empty(sizes, dtype=torch.int16, device=steps.device)
    for e in range(2):
        word = torch.zeros((*parts.shape[:4], 4), dtype=torch.int16, device=steps.device)
        for place in range(4):
            half = parts[..., place % 2, place // 2, :].to(torch.int16)
            word |= (half >> 4 * e & 15) << 4 * place
        words[..., e] = word.permute(0, 2, 1, 4, 3)
    return words.flatten(3)


def check_int4(weight: PackedInt4, x: Tensor) -> None:
    """Raise KernelInputError for rows that a packed weight does not fit."""
    require_contiguous(x=x, words=weight.words, metas=weight.metas)
    num_outputs, num_inputs = weight.shape
    require(x.shape[1] == num_inputs, f"x is {x.shape[1]} wide, weight {num_inputs}")
    num_blocks = ceil_div(num_inputs, BLOCK)
    words = (ceil_div(num_outputs, STRIP), num_blocks, STRIP, WORDS)
    require(weight.words.shape == words, f"words are {tuple(weight.words.shape)}, not {words}")
    metas = (num_blocks * BLOCK // weight.group, num_outputs)
    require(weight.metas.shape == metas, f"metas are {tuple(weight.metas.shape)}, not {metas}")
