"""The reader follows a job from a cursor on: each index once, in order, without a gap.

Subscribe, wait for the confirmation, replay the log, go live. What the log and the channel both
bring is dropped by index; what neither has told for a while is asked of the job itself.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from redis.exceptions import ConnectionError as RedisConnectionError

from tokenbus.producer.client.event_stream import EventStream
from tokenbus.producer.client.lookup import Lookup
from tokenbus.producer.contract.result import JobResult
from tokenbus.producer.errors import (
    CursorInvalid,
    JobLost,
    JobUnknown,
    ResultTimeout,
)
from tokenbus.producer.scripts.replies import JobState
from tokenbus.producer.server.connection import retrying
from tokenbus.producer.server.sentinels import followed_master, named_master

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenbus.producer.client.hub import SubscriptionHub
    from tokenbus.producer.contract.events import Event
    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.server.url import ServerUrl
    from tokenbus.producer.settings import ClientSettings


class Reader:
    """Reads the streams of one pool over one hub."""

    def __init__(
        self, scripts: Scripts, hub: SubscriptionHub, url: ServerUrl, settings: ClientSettings
    ) -> None:
        self._scripts = scripts
        self._lookup = Lookup(scripts)
        self._hub = hub
        self._url = url
        self._settings = settings

    def stream(self, job_id: str, cursor: int = 0) -> EventStream:
        """Return the job's events after `cursor`. Raises: CursorInvalid.

        Reading it raises: JobUnknown, JobLost, ServerUnreachable, ClientClosed.
        """
        if cursor < 0:
            raise CursorInvalid("cursor", f"{cursor} is negative; 0 reads from the start")
        return EventStream(
            self._hub,
            self._replay,
            job_id,
            self._scripts.keys.channel(job_id),
            cursor,
            open_timeout_s=self._settings.retry_for_s,
            silence_s=self._settings.silence_s,
        )

    async def result(self, job_id: str, timeout_s: float | None = None) -> JobResult:
        """Wait for the end of a job and return everything it generated.

        Raises: ResultTimeout after `timeout_s` (None = no limit); what `stream` raises.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while (stored := await self._stored(job_id)) is None:
                    async with aclosing(self.stream(job_id)) as stream:
                        async for _ in stream:
                            pass
                return stored
        except TimeoutError:
            raise ResultTimeout(
                f"job {job_id} did not end within {timeout_s:g} s; it goes on"
            ) from None

    async def _replay(self, job_id: str, cursor: int, heard: bool) -> Iterable[Event]:
        """Return what is known after `cursor`: from the result, else the log; merged.

        A job that nobody knows raises JobUnknown, or JobLost once it was heard of (R12).
        What a deposed master says proves nothing: it is asked for again before either is raised.
        """

        async def read() -> Iterable[Event]:
            master = followed_master(self._scripts.redis)
            known = await self._lookup.look(job_id, cursor)
            record, events = known.record, known.events
            if events and events[-1].finish is not None:
                return _merged(events)
            if known.result is not None:
                return JobResult.parse(known.result).events(cursor)
            if record is not None and record.state is not JobState.DONE:
                return _merged(events or [])
            if await named_master(self._scripts.redis) != master:
                raise RedisConnectionError("another master rules by now")
            if record is None and not events and not heard:
                raise JobUnknown(job_id)
            raise JobLost(job_id)

        return await retrying(read, self._url, self._settings.retry_for_s)

    async def _stored(self, job_id: str) -> JobResult | None:
        """Read the result value."""
        log = self._scripts.log
        value = await retrying(lambda: log.result(job_id), self._url, self._settings.retry_for_s)
        return None if value is None else JobResult.parse(value)


def _merged(events: list[Event]) -> list[Event]:
    """Join neighbours, so that catching up costs few events."""
    merged: list[Event] = []
    for event in events:
        joined = merged[-1].merged(event) if merged else None
        if joined is None:
            merged.append(event)
        else:
            merged[-1] = joined
    return merged
