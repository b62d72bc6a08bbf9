"""Grammar masks where captured steps find them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tokenbus.engine.sampling.bitmask import bitmask_width, distinct_masks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tokenbus.engine.execution.rows import RowState


class StepMasks:
    """A table on the device that holds the masks of one step, each once.

    A graph is told by numbers which mask is whose; number 0, of free rows, allows every token. So
    nothing is taken back when a row leaves: nobody reads what an earlier step has left.
    """

    def __init__(self, rows: RowState, vocab_size: int) -> None:
        """Make room for a mask of each row."""
        self._rows = rows
        shape = (rows.padding_row + 1, bitmask_width(vocab_size))
        self._table = torch.zeros(shape, dtype=torch.int32, device=rows.device)
        self._table[0] = -1

    def require_fit(self, mask: Tensor) -> None:
        """Raise ValueError unless a mask is [W] int32, as wide as the vocabulary."""
        if mask.dtype != torch.int32 or mask.shape != self._table.shape[1:]:
            raise ValueError(f"a mask is {tuple(mask.shape)} of {mask.dtype}")

    def send(self, masks: Sequence[Tensor | None]) -> list[int]:
        """Send the masks of a step's rows, all that fit, and return the number of each row's.

        They take the place of those of the step before, in stream order.
        """
        found, numbers = distinct_masks(masks)
        if found:
            self._rows.copy_into(self._table[1 : 1 + len(found)], torch.stack(found))
        return numbers

    def of(self, numbers: Tensor) -> Tensor:
        """Return the masks with these numbers, [M] int64 on the device, as [M, W] int32."""
        return self._table.index_select(0, numbers)
