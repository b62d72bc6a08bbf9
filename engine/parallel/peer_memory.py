"""Memory of peers: the boxes of all ranks, mapped into each of them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from tokenbus.engine.parallel.board import RankBoard
    from tokenbus.kernels.exchange import Boxes

_log = logging.getLogger(__name__)

_GROUP = "tokenbus.ranks"
# Of a rank: what 8,192 rows of 8,192 numbers of two bytes take on both sides, for one sender.
_BOX_BYTES = 256 << 20


def open_boxes(device: torch.device, board: RankBoard, store: Any) -> Boxes | None:
    """Open a box for every rank; all ranks do so together. Returns: None without peer memory."""
    peers = (rank for rank in range(board.size) if rank != board.rank)
    if not all(torch.cuda.can_device_access_peer(device, rank) for rank in peers):
        _log.info("ranks.peers: memory of other GPUs cannot be read here, sums go through NCCL")
        return None
    # torch gives no other way to its memory for peers without a process-wide default group.
    from torch._C._distributed_c10d import _SymmetricMemory

    from tokenbus.kernels.exchange import EMPTY_BYTE, NUM_SIDES, Boxes

    memory: Any = _SymmetricMemory
    memory.set_group_info(_GROUP, board.rank, board.size, store)
    box = memory.empty_strided_p2p((_BOX_BYTES,), (1,), torch.uint8, device, _GROUP)
    box.fill_(EMPTY_BYTE)
    torch.cuda.synchronize(device)
    # Nobody writes before all boxes are empty: who has met the others here has emptied its own.
    mapped = memory.rendezvous(box, _GROUP)
    addresses = torch.tensor(mapped.buffer_ptrs, dtype=torch.int64, device=device)
    place_bytes = _BOX_BYTES // NUM_SIDES // (board.size - 1) // 4096 * 4096
    return Boxes(addresses, board.rank, board.size, place_bytes, (box, mapped))
