"""The watch of rank 0 over its followers: who ended, who hangs, and whether all wait for all.

A rank that computes, compiles or captures is slow, not lost: its beat goes on, and it has not come
to the collective that the others wait in. A rank whose beat stops is lost, and so is the group if
every rank waits in a collective or, because it has left one out, for another order.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import time
from signal import Signals
from threading import Event, Lock, Thread, current_thread
from typing import TYPE_CHECKING

from tokenbus.engine.child_process import receive_message
from tokenbus.engine.errors import RankLost

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from tokenbus.engine.parallel.group_memory import GroupMemory

# A follower beats twenty times in that, whatever its thread computes.
SILENT_S = 4.0
BEAT_S = SILENT_S / 20
LOOK_S = 0.1
# A look that comes so much later says that this process was held up itself.
_HELD_UP_S = 1.0
# What kills a rank shows here and in what the others compute with it, in either order.
_FIRST_SIGN_S = 2.0


class Pulse:
    """When a rank beat last, by the clock of this process while that is not held up itself."""

    def __init__(self, shared: GroupMemory, rank: int) -> None:
        self._shared, self._rank, self._seen = shared, rank, 0
        self._moved_at = self._looked_at = time.monotonic()

    def has_stopped(self) -> bool:
        """Look, at least every second; tell whether a rank that has begun to beat has stopped."""
        now, beats = time.monotonic(), self._shared.beats(self._rank)
        if beats != self._seen or beats == 0 or now - self._looked_at > _HELD_UP_S:
            self._seen, self._moved_at = beats, now
        self._looked_at = now
        return now - self._moved_at > SILENT_S


class RankWatch:
    """Looks after the followers in a thread of its own; the first loss is the one that counts."""

    def __init__(
        self,
        shared: GroupMemory,
        processes: Sequence[subprocess.Popen[bytes]],
        sockets: Sequence[socket.socket],
    ) -> None:
        """Take followers, rank 1 first, with the sockets on which they tell why they end."""
        self._shared, self._processes, self._sockets = shared, processes, sockets
        self._loss: RankLost | None = None
        self._lock, self._has_lost, self._is_over = Lock(), Event(), Event()
        self._thread = Thread(target=self._run, name="watch of ranks", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more: what ends now ends in order."""
        self._is_over.set()
        # A group may be collected as garbage in any thread, this one too.
        if self._thread.is_alive() and self._thread is not current_thread():
            self._thread.join()

    def check(self) -> None:
        """Raise the loss, if there was one."""
        if self._loss is not None:
            raise RankLost(self._loss.rank, self._loss.why)

    def cause(self, error: Exception) -> RankLost:
        """Return the loss behind an error of a collective, or the error as one."""
        self._has_lost.wait(_FIRST_SIGN_S)
        self.lose(self._shared.rank, f"failed in a collective: {error}")
        loss = self._loss or RankLost(self._shared.rank, str(error))
        return RankLost(loss.rank, loss.why)

    def lose(self, rank: int, why: str) -> None:
        """Note the loss of a rank, unless there was one before, and end all followers."""
        with self._lock:
            if self._loss is None and not self._is_over.is_set():
                self._loss = RankLost(rank, why)
                self._has_lost.set()
        for process in self._processes:
            process.kill()

    def _run(self) -> None:
        pulses = {rank: Pulse(self._shared, rank) for rank in range(1, self._shared.size)}
        waits, looked_at, moved_at = [(0, 0)], time.monotonic(), time.monotonic()
        while not self._is_over.is_set() and self._loss is None:
            self._listen()
            for rank, pulse in pulses.items():
                if pulse.has_stopped():
                    self.lose(rank, f"has not answered for {SILENT_S:g} s")
            now = time.monotonic()
            counts = [self._shared.collectives(rank) for rank in range(self._shared.size)]
            is_held_up = now - looked_at > _HELD_UP_S
            if counts != waits or is_held_up or not self._all_wait(counts):
                waits, moved_at = counts, now
            elif now - moved_at > SILENT_S:
                self.lose(0, f"waits for ranks that wait for it, for {SILENT_S:g} s")
            looked_at = now

    def _all_wait(self, counts: list[tuple[int, int]]) -> bool:
        """Tell whether rank 0 waits in a collective and no other rank is on its way there."""
        leading, *following = (entered > left for entered, left in counts)
        return leading and all(
            waits or self._shared.is_asleep(rank) for rank, waits in enumerate(following, 1)
        )

    def _listen(self) -> None:
        """Wait a moment for followers that end, and take what they say."""
        try:
            ready, _, _ = select.select(self._sockets, [], [], LOOK_S)
        except (OSError, ValueError):
            # The group was let go of, and its sockets are closed.
            self._is_over.set()
            return
        for sock in ready:
            rank = self._sockets.index(sock) + 1
            why = ""
            with contextlib.suppress(OSError, ValueError):
                _, kind, message = receive_message(sock)
                why = f"failed: {kind}: {message}"
            if not self._is_over.is_set():
                self.lose(rank, why or self._end_of(rank))

    def _end_of(self, rank: int) -> str:
        """Return how a follower ended that has hung up."""
        try:
            code = self._processes[rank - 1].wait(_FIRST_SIGN_S)
        except subprocess.TimeoutExpired:
            return "hung up"
        return f"was killed by {Signals(-code).name}" if code < 0 else f"ended with status {code}"
