"""The live events of one job on their way to one stream."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from tokenbus.producer.client.reading.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tokenbus.producer.contract.address import JobAddress
    from tokenbus.producer.contract.events import Event

# From this many waiting events on, neighbours are merged.
_MERGE_FROM = 4


class Subscription:
    """Holds what was not taken yet, bounded in tokens.

    `has_hole` says that something is missing after what waits: the log has to be read. `error` is
    what the connection failed with for good. `last` is the index up to which its stream was told.
    """

    __slots__ = (
        "_loop",
        "_max_tokens",
        "_num_tokens",
        "_take",
        "_waiting_since",
        "_wakeup",
        "address",
        "channel",
        "error",
        "events",
        "has_hole",
        "last",
        "let_go",
        "version",
    )

    def __init__(
        self,
        channel: bytes,
        max_tokens: int,
        address: JobAddress,
        let_go: Callable[[Subscription], None],
    ) -> None:
        """Belong to the running event loop; `let_go` is called at its end."""
        self._loop = asyncio.get_running_loop()
        self._wakeup = Wakeup(self._loop)
        self.channel = channel
        self.address = address
        self.let_go = let_go
        # The wire version of the job, once its record has told it.
        self.version: int | None = None
        self.events: deque[Event] = deque()
        # Takes an event at once while the stream waits for it, or leaves it to the stream.
        self._take: Callable[[Event], bool] | None = None
        self.has_hole = False
        self.error: Exception | None = None
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._waiting_since = 0.0
        self.last = 0

    def hand_to(self, take: Callable[[Event], bool] | None) -> None:
        """Offer events to `take` at once while the stream waits; None ends that."""
        self._take = take

    def belong_to(self, address: JobAddress) -> None:
        """Be of a job that lies at another's address; what came before is to be read in its log."""
        self.address = address
        self.events.clear()
        self._num_tokens = 0

    def expect(self, version: int) -> None:
        """Take events of the job's wire version alone from now on; what waits is one job's."""
        self.version = version
        if any(event.version != version for event in self.events):
            self.break_off()

    def put(self, event: Event) -> None:
        """Add a live event and run the task on that waits for it.

        A consumer that is too slow gets a hole instead of a long buffer.
        """
        take = self._take
        if take is not None and self._wakeup.is_awaited and not self.events and take(event):
            self._waiting_since = monotonic()
            self.last = event.to
            return
        if self.has_hole:
            return
        self.last = event.to
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
        self._wakeup.ring()

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
        self._wakeup.ring_soon()

    def fail(self, error: Exception) -> None:
        """Let the stream raise `error` once it has taken what waits."""
        self.error = error
        self._wakeup.ring_soon()

    def wait(self) -> Awaitable[None]:
        """Return what ends once there is an event, a hole, an error, or `end_wait` says so.

        Raises: RuntimeError where another waits already.
        """
        wakeup = self._wakeup
        if wakeup.is_awaited:
            raise RuntimeError("the stream is being read by another task")
        if self.has_hole or self.error is not None:
            done = self._loop.create_future()
            done.set_result(None)
            return done
        self._waiting_since = monotonic()
        return wakeup

    def is_silent(self, before: float) -> bool:
        """Tell whether its stream has waited since before a moment of the monotonic clock."""
        return self._wakeup.is_awaited and self._waiting_since < before

    def wait_on(self) -> None:
        """Begin the silence anew."""
        self._waiting_since = monotonic()

    def end_wait(self, before: float) -> None:
        """Let the stream look for itself, if it has heard nothing meanwhile."""
        if self.is_silent(before):
            self._wakeup.ring_soon()
