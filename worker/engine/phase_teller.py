"""The engine process's side of its start: what it is at, told to the worker."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from tokenbus.worker.messages.engine import REPORTS, EngineStarting

if TYPE_CHECKING:
    import socket

# Between two reports of one phase.
_INTERVAL_S = 0.5


class PhaseTeller:
    """Tells the worker what the start is at, a new phase at once; steps may come from a thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._phase = ""
        self._told_at = 0.0
        self._lock = threading.Lock()

    def __call__(self, phase: str, share: float) -> None:
        """Report a phase and the share of it that is done, 0 to 1."""
        with self._lock:
            now = time.monotonic()
            if phase == self._phase and now - self._told_at < _INTERVAL_S:
                return
            self._phase, self._told_at = phase, now
            self._sock.sendall(REPORTS.encode(EngineStarting(phase, share)))
