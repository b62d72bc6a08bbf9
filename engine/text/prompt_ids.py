"""The ids of a prompt as an array of C ints, looked at without a loop."""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def packed(token_ids: Sequence[int]) -> Sequence[int]:
    """Return ids as an array of C ints, or as they are if one is too large for that."""
    if isinstance(token_ids, array) and token_ids.typecode == "i":
        return token_ids
    ids = array("i")
    try:
        # In a third of the time that an array takes to read them one by one.
        ids.frombytes(struct.pack(f"{len(token_ids)}i", *token_ids))
    except struct.error:
        return token_ids
    return ids


def all_within(token_ids: Sequence[int], vocab_size: int) -> bool:
    """Tell whether ids, at least one, are all of a vocabulary."""
    if isinstance(token_ids, array) and token_ids.typecode == "i":
        # Read without a sign, what is below zero is larger than any vocabulary.
        return int(np.maximum.reduce(np.frombuffer(token_ids, np.uintc))) < vocab_size
    low, high = id_range(token_ids)
    return low >= 0 and high < vocab_size


def id_range(token_ids: Sequence[int]) -> tuple[int, int]:
    """Return the lowest and the highest of at least one id."""
    if isinstance(token_ids, array) and token_ids.typecode == "i":
        ids = np.frombuffer(token_ids, np.intc)
        return int(ids.min()), int(ids.max())
    return min(token_ids), max(token_ids)
