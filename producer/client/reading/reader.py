"""The reader follows a job from a cursor on: each index once, in order, without a gap.

Subscribe, wait for the confirmation, replay the log, go live. What the log and the channel both
bring is dropped by index; what neither has told for a while is asked of the job itself.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from redis.exceptions import ConnectionError as RedisConnectionError

from tokenbus.producer.client.reading.event_stream import EventStream, Replayed
from tokenbus.producer.contract.address import DEFAULT_TENANT, JobAddress
from tokenbus.producer.contract.keys import KNOWN_VERSIONS, versions_text
from tokenbus.producer.contract.result import JobResult
from tokenbus.producer.errors import (
    CursorInvalid,
    JobDropped,
    JobForgotten,
    JobLost,
    JobUnknown,
    ResultTimeout,
    SchemaMismatch,
)
from tokenbus.producer.scripts.replies import JobState
from tokenbus.producer.server.connection import retrying
from tokenbus.producer.server.sentinels import followed_master, named_master

if TYPE_CHECKING:
    from tokenbus.producer.client.reading.client_channel import ClientChannel
    from tokenbus.producer.client.reading.hub import SubscriptionHub
    from tokenbus.producer.client.reading.lookup import Lookup
    from tokenbus.producer.contract.events import Event
    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.server.url import ServerUrl
    from tokenbus.producer.settings import ClientSettings


class Reader:
    """Reads the streams of one pool over one hub."""

    def __init__(
        self,
        scripts: Scripts,
        hub: SubscriptionHub,
        url: ServerUrl,
        settings: ClientSettings,
        lookup: Lookup,
        client_channel: ClientChannel | None = None,
    ) -> None:
        """Read what `client_channel` brings of the jobs that its client has submitted."""
        self._client_channel = client_channel
        self._scripts = scripts
        self._lookup = lookup
        self._hub = hub
        self._url = url
        self._settings = settings

    def stream(self, job_id: str, cursor: int = 0, tenant: str = DEFAULT_TENANT) -> EventStream:
        """Return the events of a tenant's job after `cursor`. Raises: CursorInvalid.

        Reading it raises: CursorInvalid, JobUnknown, JobForgotten, JobLost, ServerUnreachable,
        ServerRefused, ClientClosed, WrongEventLoop.
        """
        if cursor < 0:
            raise CursorInvalid("cursor", f"{cursor} is negative; 0 reads from the start")
        ours = self._client_channel
        return EventStream(
            self._hub,
            self._replay,
            JobAddress(job_id, tenant),
            self._scripts.keys.channel,
            cursor,
            open_timeout_s=self._settings.retry_for_s,
            kept_s=min(self._settings.result_ttl_s, self._settings.log_ttl_s),
            subscribe=None if ours is None else ours.subscribe,
            is_proven=lambda: ours is not None and ours.is_proven,
        )

    async def result(
        self, job_id: str, timeout_s: float | None = None, tenant: str = DEFAULT_TENANT
    ) -> JobResult:
        """Wait for the end of a tenant's job and return everything it generated.

        Raises: ResultTimeout after `timeout_s` (None = no limit); what `stream` raises.
        """
        address = JobAddress(job_id, tenant)
        try:
            async with asyncio.timeout(timeout_s):
                stored = await self._stored(address)
                while stored is None:
                    async with aclosing(self.stream(job_id, tenant=tenant)) as stream:
                        async for _ in stream:
                            pass
                    stored = await self._looked_up(address)
                return stored
        except TimeoutError:
            raise ResultTimeout(
                f"job {job_id} did not end within {timeout_s:g} s; it goes on"
            ) from None

    async def _replay(self, address: JobAddress, cursor: int, heard: bool) -> Replayed:
        """Return place and version of a job and what is known after `cursor`: result, else log.

        A job that nobody knows raises JobUnknown, JobForgotten where it was heard of before, or
        JobLost where it was `heard` of lately (R12); one whose result was dropped, JobDropped.
        What a deposed master says proves nothing: it is asked for again before either is raised.
        """

        async def read() -> Replayed:
            master = followed_master(self._scripts.redis)
            known = await self._lookup.look(address.job_id, cursor, address.tenant)
            record, events = known.record, known.events
            version = None if record is None else record.version
            if record is not None and record.version not in KNOWN_VERSIONS:
                raise SchemaMismatch("v", f"job {address.job_id} {versions_text(record.version)}")
            if events and events[-1].finish is not None:
                return Replayed(known.place, version, _merged(events), messages=known.messages)
            if known.result is not None:
                result = replace(JobResult.parse(known.result), tenant=address.tenant)
                return Replayed(known.place, version, result.events(cursor))
            if record is not None and record.state is not JobState.DONE:
                is_held = record.state is JobState.HELD
                merged = _merged(events or [])
                return Replayed(known.place, version, merged, is_held, known.messages)
            if record is not None and record.is_dropped:
                raise JobDropped(address.job_id)
            if await named_master(self._scripts.redis) != master:
                raise RedisConnectionError("another master rules by now")
            if cursor and not heard:
                raise JobForgotten(address.job_id)
            if record is None and not events and not heard:
                raise JobUnknown(address.job_id)
            raise JobLost(address.job_id)

        return await retrying(read, self._url, self._settings.retry_for_s)

    async def _stored(self, address: JobAddress) -> JobResult | None:
        """Read the result value at a job's own address."""
        log = self._scripts.log
        value = await retrying(
            lambda: log.result(address.text), self._url, self._settings.retry_for_s
        )
        result = None if value is None else JobResult.parse(value)
        if result is not None and result.version == 1 and address.is_plain:
            # Version 1 kept those of all tenants there, and only the record says whose it is.
            return await self._looked_up(address)
        return result and replace(result, tenant=address.tenant)

    async def _looked_up(self, address: JobAddress) -> JobResult | None:
        """Read the result value of a tenant's job, wherever it lies."""
        known = await retrying(
            lambda: self._lookup.look(address.job_id, sys.maxsize, address.tenant),
            self._url,
            self._settings.retry_for_s,
        )
        result = None if known.result is None else JobResult.parse(known.result)
        return result and replace(result, tenant=address.tenant)


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
