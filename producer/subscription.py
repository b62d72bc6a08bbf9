"""The live events of one job on their way to one stream."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenbus.producer.events import Event

# From this many waiting events on, neighbours are merged.
_MERGE_FROM = 4


class Subscription:
    """Holds what was not taken yet, bounded in tokens.

    `has_hole` says that something is missing after what waits: the log has to be read. `error` is
    what the connection failed with for good.
    """

    __slots__ = (
        "_max_tokens",
        "_num_tokens",
        "_timer",
        "_waiting_since",
        "channel",
        "error",
        "events",
        "has_hole",
        "waiter",
    )

    def __init__(self, channel: bytes, max_tokens: int) -> None:
        self.channel = channel
        self.events: deque[Event] = deque()
        self.has_hole = False
        self.error: Exception | None = None
        self.waiter: asyncio.Future[None] | None = None
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._waiting_since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def put(self, event: Event) -> None:
        """Add a live event; a consumer that is too slow gets a hole instead of a long buffer."""
        if self.has_hole:
            return
        self._num_tokens += len(event.ids)
        if self._num_tokens > self._max_tokens:
            self.break_off()
            return
        events = self.events
        if len(events) >= _MERGE_FROM:
            merged = events[-1].merged(event)
            if merged is not None:
                events[-1] = merged
                return
        events.append(event)
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def take(self) -> Event:
        """Return the oldest event; there is one."""
        event = self.events.popleft()
        self._num_tokens -= len(event.ids)
        return event

    def break_off(self) -> None:
        """Forget what waits: the log has to be read."""
        self.events.clear()
        self._num_tokens = 0
        self.has_hole = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """Let the stream raise `error` once it has taken what waits."""
        self.error = error
        self._wake()

    def stop(self) -> None:
        """Let go of the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def wait(self, silence_s: float) -> asyncio.Future[None]:
        """Return what is done once there is an event, a hole, an error, or silence for so long.

        Whoever has waited takes `waiter` back. Raises: RuntimeError where another waits already.
        """
        if self.waiter is not None:
            raise RuntimeError("the stream is being read by another task")
        loop = asyncio.get_running_loop()
        waiter = self.waiter = loop.create_future()
        if self.has_hole or self.error is not None:
            waiter.set_result(None)
            return waiter
        self._waiting_since = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(silence_s, self._look, loop, silence_s)
        return waiter

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def _look(self, loop: asyncio.AbstractEventLoop, silence_s: float) -> None:
        """End a wait that was silent; one timer serves all waits of that time, which are many."""
        self._timer = None
        if self.waiter is None:
            return
        left_s = self._waiting_since + silence_s - loop.time()
        if left_s > 0:
            self._timer = loop.call_later(left_s, self._look, loop, silence_s)
        else:
            self._wake()
