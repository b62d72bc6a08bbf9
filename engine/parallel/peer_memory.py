"""Memory of peers: the box of every rank, opened in all others by a handle of the driver."""

from __future__ import annotations

import ctypes
import logging
import weakref
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.engine.parallel.group_memory import GroupMemory
    from tokenbus.kernels.exchange import Boxes

_log = logging.getLogger(__name__)

# Of a rank: what 8,192 rows of 8,192 numbers of two bytes take on both sides, for one sender.
_BOX_BYTES = 256 << 20
# Places begin where wide loads may.
_ALIGNMENT = 4096
_HANDLE_BYTES = 64
_ENABLE_PEER_ACCESS = 1


class _Handle(ctypes.Structure):
    _fields_ = [("name", ctypes.c_byte * _HANDLE_BYTES)]  # as ctypes has it


class _Driver:
    """Three calls of the GPU's driver, which torch has loaded and made a context of."""

    def __init__(self) -> None:
        self._library: Any = ctypes.CDLL("libcuda.so.1")
        self._library.cuIpcOpenMemHandle_v2.argtypes = [ctypes.c_void_p, _Handle, ctypes.c_uint]

    def export(self, memory: torch.Tensor) -> bytes:
        """Return what other processes open a tensor by. Raises: OSError."""
        base, size, handle = ctypes.c_uint64(), ctypes.c_size_t(), _Handle()
        address = ctypes.c_uint64(memory.data_ptr())
        self._call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), address)
        self._call("cuIpcGetMemHandle", ctypes.byref(handle), base)
        return bytes(handle) + (address.value - base.value).to_bytes(8, "little")

    def open(self, exported: bytes, owner: object) -> int:
        """Return the address of another process's tensor here, as long as `owner` lives."""
        base = ctypes.c_uint64()
        handle = _Handle.from_buffer_copy(exported)
        self._call("cuIpcOpenMemHandle_v2", ctypes.byref(base), handle, _ENABLE_PEER_ACCESS)
        closing = weakref.finalize(owner, self._library.cuIpcCloseMemHandle, base)
        # At the end of the process the driver does so itself, and waits for no kernel.
        closing.atexit = False
        return base.value + int.from_bytes(exported[_HANDLE_BYTES:], "little")

    def _call(self, name: str, *arguments: Any) -> None:
        if status := getattr(self._library, name)(*arguments):
            raise OSError(f"{name} ended with status {status}")


def open_boxes(device: torch.device, shared: GroupMemory, store: Any) -> Boxes | None:
    """Open the boxes of all ranks, which do so together. Returns: None unless all ranks can."""
    from tokenbus.kernels.exchange import EMPTY_BYTE, NUM_SIDES, Boxes

    box = torch.full((_BOX_BYTES,), EMPTY_BYTE, dtype=torch.uint8, device=device)
    # Nobody can write before it has the handle, so into no box that is not empty yet.
    torch.cuda.synchronize(device)
    addresses: list[int] = []
    try:
        driver = _Driver()
        told = _told_by_all(store, shared, "box", driver.export(box))
        for rank, exported in enumerate(told):
            own = rank == shared.rank
            addresses.append(box.data_ptr() if own else driver.open(exported, box))
    except (OSError, ValueError) as error:
        _log.warning("ranks.peers: no memory of peers, sums go through NCCL: %s", error)
        addresses.clear()
        _tell(store, shared, "box", b"")
    if not all(_told_by_all(store, shared, "opened", b"\1" * len(addresses))):
        return None
    place_bytes = _BOX_BYTES // NUM_SIDES // (shared.size - 1) // _ALIGNMENT * _ALIGNMENT
    seen = torch.tensor(addresses, dtype=torch.int64, device=device)
    return Boxes(seen, shared.rank, shared.size, place_bytes, owner=box)


def _tell(store: Any, shared: GroupMemory, what: str, told: bytes) -> None:
    store.set(f"{what}-{shared.rank}", told.hex())


def _told_by_all(store: Any, shared: GroupMemory, what: str, own: bytes) -> Sequence[bytes]:
    """Tell the others something, and return what each rank tells."""
    _tell(store, shared, what, own)
    return [bytes.fromhex(store.get(f"{what}-{rank}").decode()) for rank in range(shared.size)]
