"""Followers as threads of this process: real groups, without the start of processes."""

from __future__ import annotations

import contextlib
import os
import socket
from threading import Thread
from typing import TYPE_CHECKING, Any

from tokenbus.engine.models.decoder import Decoder
from tokenbus.engine.parallel import follower
from tokenbus.engine.parallel.leading import LeadingGroup

if TYPE_CHECKING:
    import pytest
    from torch import Tensor


class ThreadFollower:
    """A follower with the face of a process."""

    def __init__(self, memory: int, sock: socket.socket) -> None:
        self._memory, self._sock = os.dup(memory), sock
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    def kill(self) -> None:
        """Hang up, which ends its collectives."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        self._thread.join(timeout)

    def _run(self) -> None:
        with contextlib.suppress(ConnectionError):
            follower.main(["0", str(self._memory), str(self._sock.detach())])


def follow_in_threads(patch: pytest.MonkeyPatch) -> dict[int, list[Tensor]]:
    """Start followers as threads from now on; return the logits of each rank, as they run."""
    logits: dict[int, list[Tensor]] = {}

    def spawn(group: Any, memory: int, _: int) -> None:
        ours, theirs = socket.socketpair()
        group._sockets.append(ours)
        group._processes.append(ThreadFollower(memory, theirs))

    def recorded(decoder: Any, hidden: Tensor, *, exact: bool = True) -> Tensor:
        found: Tensor = plain(decoder, hidden, exact=exact)
        logits.setdefault(decoder._ranks.rank, []).append(found.clone())
        return found

    plain: Any = Decoder.logits
    patch.setattr(LeadingGroup, "_spawn", spawn)
    patch.setattr(follower, "begin_as_child", lambda _: None)
    patch.setattr(Decoder, "logits", recorded)
    return logits
