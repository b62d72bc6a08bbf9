"""The submitter gathers the jobs of many tasks into few round trips."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.errors import ProducerError, QueueFull

if TYPE_CHECKING:
    from tokenbus.producer.client.async_client import AsyncClient, Job
    from tokenbus.producer.contract.schema import JobRequest

# Requests that came within this are one round trip: far below what anyone notices.
_GATHER_S = 0.002
_MAX_BATCH = 256
# Refused submits come back one by one, each with its ticket.
_MAX_RETURNS = 8


class Submitter:
    """Gathers submits of one client."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._asked: asyncio.Queue[tuple[JobRequest, asyncio.Future[Job]]] = asyncio.Queue()
        self._returns = asyncio.Semaphore(_MAX_RETURNS)

    async def submit(self, request: JobRequest) -> Job:
        """Submit a request; a full queue is waited for, in line.

        Raises: what `AsyncClient.submit` raises but QueueFull.
        """
        answer: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self._asked.put_nowait((request, answer))
        try:
            return await answer
        except QueueFull as error:
            full = error
        while True:
            await asyncio.sleep(full.retry_after_s)
            try:
                async with self._returns:
                    return await self._client.submit(request, ticket=full.ticket)
            except QueueFull as error:
                full = error

    async def run(self) -> None:
        """Send for ever."""
        while True:
            batch = [await self._asked.get()]
            await asyncio.sleep(_GATHER_S)
            while len(batch) < _MAX_BATCH and not self._asked.empty():
                batch.append(self._asked.get_nowait())
            await self._send(batch)

    async def _send(self, batch: list[tuple[JobRequest, asyncio.Future[Job]]]) -> None:
        batch = [(request, answer) for request, answer in batch if not answer.done()]
        try:
            replies = await self._client.submit_many([request for request, _ in batch])
        except (ProducerError, *SERVER_ERRORS) as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), reply in zip(batch, replies, strict=True):
            if answer.done():
                continue
            if isinstance(reply, ProducerError):
                answer.set_exception(reply)
            else:
                answer.set_result(reply)
