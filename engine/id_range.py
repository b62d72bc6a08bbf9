"""Between which values the ids of a prompt lie."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def id_range(token_ids: Sequence[int]) -> tuple[int, int]:
    """Return the lowest and the highest of at least one id; of an array of C ints at once."""
    if isinstance(token_ids, array) and token_ids.typecode == "i":
        ids = np.frombuffer(token_ids, np.intc)
        return int(ids.min()), int(ids.max())
    return min(token_ids), max(token_ids)
