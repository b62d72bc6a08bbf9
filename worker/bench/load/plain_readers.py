"""Plain readers: a bare SUBSCRIBE to the channels of some jobs, as any Redis client may do it.

They show that a job's own channel carries every event, however its submitter listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract.address import JobAddress
from tokenbus.producer.errors import ServerUnreachable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.producer.client.async_client import AsyncClient

_CONFIRM_TIMEOUT_S = 10.0


class ChannelReader:
    """What came on one job's channel."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.num_events = 0
        self.has_ended = False
        self._last = 0
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._fault: str | None = None

    def take(self, body: bytes) -> None:
        """Take one message: each index once and in order, the terminal one last."""
        event: dict[str, Any] = json.loads(body)
        self.num_events += 1
        is_end = event.get("finish") is not None
        if self.has_ended:
            self._find("an event after the terminal one")
        elif event["from"] != self._last + 1 or event["to"] != self._last + len(event["ids"]):
            self._find(f"event {event['from']}…{event['to']} follows token {self._last}")
        self.has_ended = self.has_ended or is_end
        self._last = event["to"]
        if not is_end:
            self._ids.extend(event["ids"])
            self._texts.append(event["text"])

    def fault(self, ids: Sequence[int], text: str) -> str | None:
        """Say how what came differs from what the job's own client read; None if it does not."""
        if not self.has_ended:
            self._find(f"{self.num_events} events and no terminal one")
        if self._ids != list(ids) or "".join(self._texts) != text:
            self._find(f"{len(self._ids)} tokens that are not the {len(ids)} of the job")
        return self._fault

    def _find(self, fault: str) -> None:
        """Note the first fault."""
        self._fault = self._fault or fault


class PlainReaders:
    """The plain readers of a reader process, over one connection of their own."""

    def __init__(self, client: AsyncClient, percent: float) -> None:
        self._keys = client.scripts.keys
        self._pubsub: Any = client.scripts.redis.pubsub()
        self._share = percent / 100
        self._by_channel: dict[bytes, ChannelReader] = {}
        self._unconfirmed: set[bytes] = set()
        self._confirmed = asyncio.Event()
        self._came = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def num_jobs(self) -> int:
        """Jobs whose channels were read."""
        return len(self._by_channel)

    @property
    def num_events(self) -> int:
        """Events that came on them."""
        return sum(reader.num_events for reader in self._by_channel.values())

    def choose(self, number: int) -> ChannelReader | None:
        """Return a reader for a job if its number is of the share; they are spread evenly."""
        if int((number + 1) * self._share) == int(number * self._share):
            return None
        return ChannelReader(f"plain-{secrets.token_hex(8)}")

    async def listen(self, readers: Sequence[tuple[ChannelReader, str]]) -> None:
        """Subscribe to the channels of jobs, given with their tenants, before they are submitted.

        Raises: ServerUnreachable if the server does not confirm.
        """
        if not readers:
            return
        channels = {
            self._keys.channel(JobAddress(reader.job_id, tenant).text).encode(): reader
            for reader, tenant in readers
        }
        self._by_channel |= channels
        self._unconfirmed |= channels.keys()
        self._confirmed.clear()
        await self._pubsub.subscribe(*channels)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(_CONFIRM_TIMEOUT_S):
                await self._confirmed.wait()
        except TimeoutError:
            raise ServerUnreachable("a plain SUBSCRIBE was not confirmed", code="TIMEOUT") from None

    async def wait_ended(self, readers: Sequence[ChannelReader], timeout_s: float) -> None:
        """Wait until all of these have seen an end; what comes later counts as missing."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not all(reader.has_ended for reader in readers):
                    self._came.clear()
                    await self._came.wait()

    async def close(self) -> None:
        """End the connection."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._pubsub.aclose()

    async def _run(self) -> None:
        async for message in self._pubsub.listen():
            if message["type"] == "message":
                self._by_channel[message["channel"]].take(message["data"])
                self._came.set()
            elif message["type"] == "subscribe":
                self._unconfirmed.discard(message["channel"])
                if not self._unconfirmed:
                    self._confirmed.set()
