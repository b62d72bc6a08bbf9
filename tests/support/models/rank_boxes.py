"""The boxes of several ranks on one device, on which the ranks are run one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tokenbus.kernels.exchange import EMPTY_BYTE, NUM_SIDES, Boxes, Exchange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class RankBoxes:
    """Memory of every rank, into which a test writes what the others would send."""

    def __init__(self, size: int, device: torch.device, place_bytes: int = 1 << 16) -> None:
        shape = (size, NUM_SIDES, size - 1, place_bytes)
        self.memory = torch.full(shape, EMPTY_BYTE, dtype=torch.uint8, device=device)
        addresses = torch.tensor([box.data_ptr() for box in self.memory], device=device)
        self.boxes = [Boxes(addresses, rank, size, place_bytes) for rank in range(size)]

    def arrived(self, parts: Sequence[Tensor], rank: int, side: int) -> Exchange:
        """Write the others' parts into a rank's box; return the exchange that it finds them by."""
        for sender, part in enumerate(parts):
            if sender != rank:
                self.place(rank, side, sender, part.nbytes).copy_(part.flatten().view(torch.uint8))
        return Exchange(self.boxes[rank], side)

    def place(self, rank: int, side: int, sender: int, num_bytes: int) -> Tensor:
        """Return what a rank's box has of a sender."""
        return self.memory[rank, side, sender - (sender > rank), :num_bytes]

    def is_empty(self, rank: int) -> bool:
        """Tell whether a rank has read all that was sent to it."""
        return bool((self.memory[rank] == EMPTY_BYTE).all())
