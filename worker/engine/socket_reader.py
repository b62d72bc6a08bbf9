"""The socket reader: a thread that reads a process's socket while that computes.

A socket holds some 400 KB, two dozen long prompts: a sender of more waits until the other end
reads. If that happened only between two steps, each step of a crowd would get two dozen prompts,
however many it has room for.

Each time the thread wakes up, it takes the interpreter from the thread that computes. So it watches
the socket only while that one does not wait for it, and lets a burst of small frames come together.
"""

from __future__ import annotations

import select
import selectors
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK_BYTES = 1 << 18
# Between small reads that follow each other; after larger ones a sender may be held up.
_PAUSE_S = 0.001


class SocketReader:
    """Reads a socket for the thread that owns it, and in another while that one computes."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._heard: list[bytes] = []
        # What the other thread waits for; changed by the owner alone, also while it waits.
        self._watched = selectors.DefaultSelector()
        self._is_watched = False
        # The owner holds it except while it computes, so that only one thread reads at a time.
        self._turn = threading.Lock()
        self._turn.acquire()
        threading.Thread(target=self._listen, name="socket_reader", daemon=True).start()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let the other thread read during the block."""
        if not self._is_watched:
            self._is_watched = True
            self._watched.register(self._sock, selectors.EVENT_READ)
        self._turn.release()
        try:
            yield
        finally:
            self._turn.acquire()

    def wait(self, timeout_s: float) -> None:
        """Wait until there is something to take, at most for the time given."""
        if self._heard:
            return
        if self._is_watched:
            self._is_watched = False
            self._watched.unregister(self._sock)
        select.select([self._sock], [], [], timeout_s)

    def take(self) -> list[bytes]:
        """Return what has arrived, in order; an empty chunk is the end."""
        while self._hear():
            pass
        heard, self._heard = self._heard, []
        return heard

    def _listen(self) -> None:
        heard_at = 0.0
        try:
            while True:
                self._watched.select()
                with self._turn:
                    self._hear()
                    newest = self._heard[-1:]
                if newest == [b""]:
                    return
                earlier, heard_at = heard_at, time.monotonic()
                if heard_at - earlier < _PAUSE_S and sum(map(len, newest)) < _CHUNK_BYTES // 2:
                    time.sleep(_PAUSE_S)
        except (OSError, ValueError):
            return  # The owner has closed the socket.

    def _hear(self) -> bool:
        """Read once; tell whether there may be more."""
        try:
            chunk = self._sock.recv(_CHUNK_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        self._heard.append(chunk)
        return bool(chunk)
