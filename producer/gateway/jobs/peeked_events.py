"""The events of a job, as its caller is told of them.

The first may be looked at before anything is answered. A job that was cancelled because its
caller's key was revoked has the error of that key as its end: whether the job or the stream is
ended first, the caller is told the same.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tokenbus.producer.contract.events import FINISHED_REASONS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tokenbus.producer.client.reading.event_stream import EventStream
    from tokenbus.producer.contract.events import Event, Finish
    from tokenbus.producer.gateway.access.caller import Caller
    from tokenbus.producer.gateway.access.key_ring import KeyRing
    from tokenbus.producer.gateway.jobs.submitted_job import SubmittedJob


class PeekedEvents:
    """Yields the events of a job from the first on, that which was looked at among them."""

    __slots__ = ("_caller", "_first", "_keys", "_stream")

    def __init__(self, job: SubmittedJob, caller: Caller, keys: KeyRing) -> None:
        self._stream: EventStream = job.client.stream(job.job_id, tenant=job.tenant)
        self._first: Event | None = None
        self._caller = caller
        self._keys = keys

    async def failure(self, timeout_s: float) -> Finish | None:
        """Return how the job ended if it did so early, before its first token.

        A job that has not begun after so many seconds is none of those.
        Raises: what `AsyncClient.stream` names; ApiError 401 where the key was revoked.
        """
        try:
            async with asyncio.timeout(timeout_s):
                self._first = await anext(self._stream)
        except TimeoutError:
            return None
        await self._check(self._first)
        finish = self._first.finish
        return None if finish is None or finish.reason in FINISHED_REASONS else finish

    def __aiter__(self) -> AsyncIterator[Event]:
        """Return the iterator."""
        return self

    async def __anext__(self) -> Event:
        """Return the next event. Raises: as `failure`."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        event = await anext(self._stream)
        if event.finish is not None:
            await self._check(event)
        return event

    def hand_to(self, take: Callable[[Event], bool]) -> None:
        """Offer live events to `take` first, as `EventStream.hand_to`."""
        self._stream.hand_to(take)

    async def _check(self, event: Event) -> None:
        if event.finish is not None and event.finish.reason == "cancelled":
            await self._keys.check(self._caller)

    async def aclose(self) -> None:
        """End the stream."""
        await self._stream.aclose()
