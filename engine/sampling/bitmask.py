"""Packed token masks of grammars: one bit per token, little end first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence


def bitmask_width(vocab_size: int) -> int:
    """Return the int32 words that hold one bit per token."""
    return -(-vocab_size // 32)


def distinct_masks(masks: Sequence[Tensor | None]) -> tuple[list[Tensor], list[int]]:
    """Return masks, each once, and which of them is each row's, from 1; 0 for rows without.

    Rows at one place of a grammar share a mask: 19 KB each, for a vocabulary of 152k, are more than
    all else that a step sends.
    """
    numbers: dict[int, int] = {}
    found: list[Tensor] = []
    places = [0] * len(masks)
    for idx, mask in enumerate(masks):
        if mask is not None:
            places[idx] = numbers.setdefault(id(mask), len(found) + 1)
            if places[idx] > len(found):
                found.append(mask)
    return found, places


def leaves_one(bitmask: Tensor) -> bool:
    """Tell whether a mask, [W] int32 on the CPU, allows one token alone."""
    # Of numpy: for each draw behind a draft it is asked on the engine's thread.
    words = bitmask.numpy().view(np.uint32)
    places = words.nonzero()[0]
    return len(places) == 1 and int(words[places[0]]).bit_count() == 1


def unpack_table(device: torch.device) -> Tensor:
    """Return [256, 8] bool: the bits of every byte, lowest first."""
    values = torch.arange(256, device=device).unsqueeze(-1)
    return ((values >> torch.arange(8, device=device)) & 1).bool()


def unpack(bitmask: Tensor, vocab_size: int, table: Tensor) -> Tensor:
    """Expand packed masks by byte look-up.

    Args:
        bitmask: [M, W] int32, contiguous; tokens from 32 * W on are not allowed.
        table: [256, 8] bool from `unpack_table`.
    Returns: [M, vocab_size] bool, True = allowed.
    """
    allowed = table[bitmask.view(torch.uint8).int()].flatten(1)
    missing = vocab_size - allowed.shape[1]
    if missing > 0:
        return torch.nn.functional.pad(allowed, (0, missing), value=False)
    return allowed[:, :vocab_size]
