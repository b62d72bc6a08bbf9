"""Ends of jobs: one connection on which many callers wait for them.

Completions are announced on one channel of the pool, so that waiting for a thousand answers costs
a thousand messages and not their tokens. What the channel missed is found by looking at the records
now and then, and after every reconnect.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from tokenbus.producer.answers import SERVER_ERRORS, answer_of
from tokenbus.producer.scripts.replies import JobState
from tokenbus.producer.server.connection import FIRST_PAUSE_S, MAX_PAUSE_S
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenbus.producer.scripts import Scripts

SWEEP_INTERVAL_S = 2.0
_SLICE = 256


class Endings:
    """Tells when jobs of one pool have ended."""

    def __init__(self, scripts: Scripts, call_timeout_s: float) -> None:
        self._redis: Any = scripts.redis
        self._keys = scripts.keys
        self._call_timeout_s = call_timeout_s
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._log = get_logger()

    @contextlib.contextmanager
    def of(self, job_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set when the job at an address has ended, or is not known any more.

        Look at the job after entering, in case that it ended before.
        """
        event = asyncio.Event()
        self._waiting.setdefault(job_id, set()).add(event)
        try:
            yield event
        finally:
            events = self._waiting[job_id]
            events.discard(event)
            if not events:
                del self._waiting[job_id]

    async def run(self) -> None:
        """Listen for ever; a server that is away is asked again."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(self._sweep())

    async def _listen(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            channel = self._redis.pubsub(ignore_subscribe_messages=True)
            try:
                await channel.subscribe(self._keys.of("ended"))
                await self._look(list(self._waiting))
                pause_s = FIRST_PAUSE_S
                while True:
                    # Without a time limit redis-py would not see that the server is gone.
                    message = await channel.get_message(timeout=self._call_timeout_s)
                    if message is None:
                        await channel.ping()
                    else:
                        self._wake(message["data"].decode())
            except SERVER_ERRORS as error:
                self._log.warning("endings.interrupted", reason=answer_of(error).told)
            finally:
                with contextlib.suppress(*SERVER_ERRORS):
                    await channel.aclose()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            try:
                await self._look(list(self._waiting))
            except SERVER_ERRORS as error:
                self._log.warning("endings.unseen", reason=answer_of(error).told)

    async def _look(self, job_ids: Iterable[str]) -> None:
        """Wake those who wait for a job that is done, or that has no record."""
        ids = list(job_ids)
        for first in range(0, len(ids), _SLICE):
            part = ids[first : first + _SLICE]
            async with asyncio.timeout(self._call_timeout_s):
                pipe = self._redis.pipeline(transaction=False)
                for job_id in part:
                    pipe.hget(self._keys.of("job", job_id), "state")
                states = await pipe.execute()
            for job_id, state in zip(part, states, strict=True):
                if state is None or state.decode() == JobState.DONE:
                    self._wake(job_id)

    def _wake(self, job_id: str) -> None:
        for event in self._waiting.get(job_id, ()):
            event.set()
