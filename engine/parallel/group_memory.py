"""Group memory: what all ranks of a group share.

Rank 0 publishes orders in it, and every rank tells there what it has read and that it lives. Orders
lie in a ring of bytes, counted from the start of the group on: `head` is what was published, the
`tail` of a rank what it has read. A record is the length and the checksum of a piece, then the
piece; an order of more bytes than a piece may have is several records.

Words are eight bytes in lines of their own, so that each is read and written at once. Nothing
orders a record before its `head` on processors that reorder writes: the checksum tells a reader
that came too early, and it reads again.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import zlib
from struct import Struct
from time import monotonic, sleep
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from socket import socket

_HEADER_BYTES = 4096
_LINE_WORDS = 8
# Of one rank's line.
_TAIL, _ASLEEP, _BEAT, _ENTERED, _LEFT = range(5)
_RING_BYTES = 4 << 20
_PIECE_BYTES = _RING_BYTES // 4
_RECORD = Struct("<IIQ")  # Bytes of the piece, its checksum, bytes of the order still to come.
# A sleeper looks by itself so often: the mark that it sleeps may be seen too late, rarely.
_DOZE_S = 0.05
_FULL_S = 50e-6


def open_memory() -> int:
    """Return the descriptor of new memory for a group; nothing of it is left behind."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("tokenbus-ranks")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, _HEADER_BYTES + _RING_BYTES)
    return fd


def open_store() -> tuple[int, str]:
    """Return the descriptor of what ranks meet in, and its path for those who inherit that.

    It stays open: torch may write to the path until the process is gone. Nothing of it is left
    behind by a kill of any rank, where there is memory without a name.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("tokenbus-store")
        return fd, f"/proc/self/fd/{fd}"
    return tempfile.mkstemp(prefix="tokenbus-store-")


class GroupMemory:
    """The memory behind a descriptor, as one rank sees it."""

    def __init__(self, fd: int, rank: int, size: int) -> None:
        """Map the memory for `rank` of `size` ranks."""
        self.rank, self.size = rank, size
        self._memory = mmap.mmap(fd, _HEADER_BYTES + _RING_BYTES)
        self._words = memoryview(self._memory)[:_HEADER_BYTES].cast("Q")
        self._ring = memoryview(self._memory)[_HEADER_BYTES:]

    @property
    def head(self) -> int:
        """Bytes published so far."""
        return self._words[0]

    @property
    def all_asleep(self) -> bool:
        """Whether every follower has launched all that it was told and waits for more."""
        return all(self.is_asleep(rank) for rank in range(1, self.size))

    def is_asleep(self, rank: int) -> bool:
        """Tell whether a follower has launched all that it was told and waits for more."""
        return bool(self._words[self._at(rank, _ASLEEP)])

    def beat(self) -> None:
        """Tell that this rank lives."""
        self._count(_BEAT)

    def beats(self, rank: int) -> int:
        """Return how often a rank told that it lives."""
        return self._words[self._at(rank, _BEAT)]

    def enter(self) -> None:
        """Tell that this rank waits for the others in a collective."""
        self._count(_ENTERED)

    def leave(self) -> None:
        """Tell that a collective is over for this rank."""
        self._count(_LEFT)

    def collectives(self, rank: int) -> tuple[int, int]:
        """Return how many collectives a rank has entered, and how many it has left."""
        return self._words[self._at(rank, _ENTERED)], self._words[self._at(rank, _LEFT)]

    def publish(self, order: bytes, bells: Iterable[socket], check: Callable[[], None]) -> None:
        """Write an order for all followers, and wake those that sleep.

        `check` is called while the ring is full; what it raises ends the wait.
        """
        rest = len(order)
        for start in range(0, max(1, len(order)), _PIECE_BYTES):
            piece = order[start : start + _PIECE_BYTES]
            rest -= len(piece)
            record = _RECORD.pack(len(piece), zlib.crc32(piece), rest) + piece
            while self._words[0] + len(record) - self._read_by_all() > _RING_BYTES:
                check()
                sleep(_FULL_S)
            self._write(self._words[0], record)
            self._words[0] += len(record)
            self._wake(bells)

    def receive(self, bell: socket, spin_s: float) -> bytes:
        """Return the next order: spin for it, then sleep until `bell` rings.

        Raises: ConnectionError if rank 0 hung up.
        """
        order = bytearray()
        rest = 1
        while rest:
            self._await(bell, spin_s)
            piece, rest = self._next_piece()
            order += piece
        return bytes(order)

    def _next_piece(self) -> tuple[bytes, int]:
        tail = self._words[self._at(self.rank, _TAIL)]
        while True:
            length, checksum, rest = _RECORD.unpack(self._read(tail, _RECORD.size))
            if length <= _PIECE_BYTES:
                piece = self._read(tail + _RECORD.size, length)
                if zlib.crc32(piece) == checksum:
                    self._words[self._at(self.rank, _TAIL)] = tail + _RECORD.size + length
                    return piece, rest

    def _await(self, bell: socket, spin_s: float) -> None:
        tail, asleep = self._words[self._at(self.rank, _TAIL)], self._at(self.rank, _ASLEEP)
        gives_up_at = monotonic() + spin_s
        while self._words[0] == tail and monotonic() < gives_up_at:
            pass
        bell.settimeout(_DOZE_S)
        while self._words[0] == tail:
            self._words[asleep] = 1
            if self._words[0] != tail:
                break
            try:
                if not bell.recv(64):
                    raise ConnectionError("rank 0 hung up")
            except TimeoutError:
                continue
        self._words[asleep] = 0

    def _wake(self, bells: Iterable[socket]) -> None:
        for rank, bell in enumerate(bells, 1):
            at = self._at(rank, _ASLEEP)
            if self._words[at]:
                self._words[at] = 0
                try:
                    bell.send(b"\0")
                except OSError:
                    continue  # It ended, which its watch tells.

    def _read_by_all(self) -> int:
        return min(self._words[self._at(rank, _TAIL)] for rank in range(1, self.size))

    def _count(self, word: int) -> None:
        self._words[self._at(self.rank, word)] += 1

    def _at(self, rank: int, word: int) -> int:
        return _LINE_WORDS * (rank + 1) + word

    def _write(self, at: int, record: bytes) -> None:
        at %= _RING_BYTES
        first = min(len(record), _RING_BYTES - at)
        self._ring[at : at + first] = record[:first]
        self._ring[: len(record) - first] = record[first:]

    def _read(self, at: int, num_bytes: int) -> bytes:
        at %= _RING_BYTES
        first = min(num_bytes, _RING_BYTES - at)
        return bytes(self._ring[at : at + first]) + bytes(self._ring[: num_bytes - first])
