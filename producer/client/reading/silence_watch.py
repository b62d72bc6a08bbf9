"""The silence watch: the streams of one client that hear nothing, looked after together.

Most of them wait for their turn in the queue, or for a worker that computes: the state of the
record says so, and the end of the log that nothing was missed. A crowd of streams with a timer and
a look at record, log and result each costs more than the answers that they wait for.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.client.reading.subscription import Subscription
from tokenbus.producer.scripts.replies import JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenbus.producer.client.reading.lookup import Lookup
    from tokenbus.producer.contract.address import JobAddress

# Jobs of one round trip: to ask for more keeps the tokens of others waiting for milliseconds.
_NUM_TOGETHER = 64
# Of these states nothing has to be read: no worker has the job.
_WAITING = {state.value.encode() for state in (JobState.WAITING, JobState.DELAYED)}
_HELD = JobState.HELD.value.encode()


def _always() -> bool:
    return True


class SilenceWatch:
    """Watches the subscriptions that it makes, with one timer."""

    def __init__(self, lookup: Lookup, silence_s: float) -> None:
        self._lookup = lookup
        self._silence_s = silence_s
        # Of each whether the workers are known to publish where it listens.
        self._watched: dict[Subscription, Callable[[], bool]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def subscription(
        self,
        channel: bytes,
        max_tokens: int,
        address: JobAddress,
        let_go: Callable[[Subscription], None],
        is_proven: Callable[[], bool] = _always,
    ) -> Subscription:
        """Make a subscription that is watched until it is released.

        `is_proven` tells whether every worker publishes on the channel.
        """

        def released(gone: Subscription) -> None:
            self._watched.pop(gone, None)
            let_go(gone)

        made = Subscription(channel, max_tokens, address, released)
        self._watched[made] = is_proven
        if self._timer is None:
            self._start()
        return made

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

    async def _look(self, silent: Sequence[Subscription], before: float) -> None:
        """Ask for the jobs; of which there may be something to read is for its stream."""
        for first in range(0, len(silent), _NUM_TOGETHER):
            part = silent[first : first + _NUM_TOGETHER]
            try:
                unchanged = await self._unchanged(part)
            except SERVER_ERRORS:
                # Each stream tries for as long as it may, and says what is wrong.
                unchanged = set()
            for subscription in part:
                if subscription in unchanged:
                    subscription.wait_on()
                else:
                    subscription.end_wait(before)

    async def _unchanged(self, part: Sequence[Subscription]) -> set[Subscription]:
        """Return those whose jobs wait, or are held and have logged nothing that was not told.

        Raises: as `Lookup.states`.
        """
        states = await self._lookup.states([each.address.text for each in part])
        stated = list(zip(part, states, strict=True))
        found = {each for each, state in stated if state in _WAITING}
        held = [each for each, state in stated if state == _HELD and self._is_proven(each)]
        if held:
            lasts = await self._lookup.last_indices([each.address.text for each in held])
            found |= {each for each, last in zip(held, lasts, strict=True) if last == each.last}
        return found

    def _is_proven(self, subscription: Subscription) -> bool:
        is_proven = self._watched.get(subscription)
        return is_proven is not None and is_proven()
