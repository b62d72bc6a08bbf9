"""The events of a job of which the first may be looked at before anything is answered."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tokenbus.producer.contract.events import FINISHED_REASONS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.client.reading.event_stream import EventStream
    from tokenbus.producer.contract.events import Event, Finish
    from tokenbus.producer.gateway.jobs.submitted_job import SubmittedJob


class PeekedEvents:
    """Yields the events of a job from the first on, that which was looked at among them."""

    __slots__ = ("_first", "_stream")

    def __init__(self, job: SubmittedJob) -> None:
        self._stream: EventStream = job.client.stream(job.job_id, tenant=job.tenant)
        self._first: Event | None = None

    async def failure(self, timeout_s: float) -> Finish | None:
        """Return how the job ended if it did so early, before its first token.

        A job that has not begun after so many seconds is none of those.
        Raises: what `AsyncClient.stream` names.
        """
        try:
            async with asyncio.timeout(timeout_s):
                self._first = await anext(self._stream)
        except TimeoutError:
            return None
        finish = self._first.finish
        return None if finish is None or finish.reason in FINISHED_REASONS else finish

    def __aiter__(self) -> AsyncIterator[Event]:
        """Return what yields the rest: the stream itself where nothing was looked at."""
        return self._stream if self._first is None else self

    async def __anext__(self) -> Event:
        """Return the next event. Raises: as `failure`."""
        first, self._first = self._first, None
        return await anext(self._stream) if first is None else first

    async def aclose(self) -> None:
        """End the stream."""
        await self._stream.aclose()
