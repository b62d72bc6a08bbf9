"""The silence watch: streams of one client that hear nothing, looked after together.

Most of them wait for their turn in the queue, and a record says so in one word. A crowd of streams
with a timer and a look at record, log and result each costs more than the answers that they wait
for.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.client.reading.subscription import Subscription

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tokenbus.producer.client.reading.lookup import Lookup
    from tokenbus.producer.contract.address import JobAddress

# Jobs of one round trip: to ask for more keeps the tokens of others waiting for milliseconds.
_NUM_TOGETHER = 64
# Of these states nothing has to be read: no worker has the job.
_WAITING = (b"waiting", b"delayed")


class WatchedSubscription(Subscription):
    """A subscription without a timer of its own."""

    __slots__ = ()

    def wait(self, silence_s: float) -> Awaitable[None]:  # noqa: ARG002 -- the watch has its own
        """Return what ends once there is an event, a hole, an error, or the watch says so."""
        return self._begin_wait()

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


class SilenceWatch:
    """Watches the subscriptions that it makes, with one timer."""

    def __init__(self, lookup: Lookup, silence_s: float) -> None:
        self._lookup = lookup
        self._silence_s = silence_s
        self._watched: set[WatchedSubscription] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def subscription(
        self,
        channel: bytes,
        max_tokens: int,
        address: JobAddress,
        let_go: Callable[[Subscription], None],
    ) -> Subscription:
        """Make a subscription that is watched until it is released."""
        made = WatchedSubscription(channel, max_tokens, address, let_go)
        self._watched.add(made)
        if self._timer is None:
            self._start()
        return made

    def release(self, subscription: Subscription) -> None:
        """Watch a subscription no more. Safe to repeat."""
        if isinstance(subscription, WatchedSubscription):
            self._watched.discard(subscription)

    def stop(self) -> None:
        """Let timer and task go."""
        self._watched.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        # A silence is noticed a quarter late at most.
        self._timer = loop.call_later(self._silence_s / 4, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if not self._watched:
            return
        before = monotonic() - self._silence_s
        silent = [each for each in self._watched if each.is_silent(before)]
        if silent and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._look(silent, before))
            self._task.add_done_callback(self._looked)
        self._start()

    def _looked(self, _: asyncio.Task[None]) -> None:
        self._task = None

    async def _look(self, silent: Sequence[WatchedSubscription], before: float) -> None:
        """Ask for the states of jobs; those that do more than wait are for their streams."""
        for first in range(0, len(silent), _NUM_TOGETHER):
            part = silent[first : first + _NUM_TOGETHER]
            states: Sequence[bytes | None]
            try:
                states = await self._lookup.states([each.address.text for each in part])
            except SERVER_ERRORS:
                # Each stream tries for as long as it may, and says what is wrong.
                states = [None] * len(part)
            for subscription, state in zip(part, states, strict=True):
                if state in _WAITING:
                    subscription.wait_on()
                else:
                    subscription.end_wait(before)
