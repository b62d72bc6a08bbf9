"""The batch service: takes batches of one pool that nobody runs, and runs a few at once."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from functools import partial
from typing import TYPE_CHECKING

from tokenbus.producer.answers import SERVER_ERRORS, answer_of
from tokenbus.producer.errors import ServerError
from tokenbus.producer.stored.errors import LeaseTaken
from tokenbus.worker.control.batches.batch_run import BatchRun
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from tokenbus.producer.stored.stored_files import StoredFiles
    from tokenbus.worker.control.batches.batch_tools import BatchTools

POLL_S = 0.5
# A batch of a service that was killed is another's after this long.
LEASE_MS = 6000
# Batches that are looked at, oldest first, and run at once.
_MAX_LOOKED_AT = 256
MAX_RUNNING = 4
_RETRY_S = 2.0


class BatchService:
    """Runs the batches of one pool."""

    def __init__(self, tools: BatchTools, pool: str, *, lease_ms: int = LEASE_MS) -> None:
        self._tools = tools
        self._pool = pool
        self._lease_ms = lease_ms
        self._running: dict[str, asyncio.Task[None]] = {}
        # Batches whose run has failed here, until when they are left alone.
        self._resting: dict[str, float] = {}
        self._log = get_logger()

    @property
    def files(self) -> StoredFiles:
        """Return the place of inputs and outputs."""
        return self._tools.files

    async def run(self) -> None:
        """Run for ever; a server that is away is asked again."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    await self._take(tasks)
                except SERVER_ERRORS as error:
                    self._log.warning("batch.take_failed", reason=answer_of(error).told)
                await asyncio.sleep(POLL_S)

    async def _take(self, tasks: asyncio.TaskGroup) -> None:
        batches, now = self._tools.batches, time.monotonic()
        self._resting = {each: until for each, until in self._resting.items() if until > now}
        for batch_id in await batches.open_ids(self._pool, _MAX_LOOKED_AT):
            if len(self._running) >= MAX_RUNNING:
                return
            if batch_id in self._running or batch_id in self._resting:
                continue
            token = secrets.token_hex(16)
            if await batches.take(batch_id, token, self._lease_ms):
                task = tasks.create_task(self._own(batch_id, token))
                self._running[batch_id] = task
                task.add_done_callback(partial(self._ended, batch_id))

    def _ended(self, batch_id: str, _: asyncio.Task[None]) -> None:
        self._running.pop(batch_id)

    async def _own(self, batch_id: str, token: str) -> None:
        """Run a batch under its lease."""
        self._log.info("batch.taken", batch_id=batch_id)
        try:
            async with asyncio.TaskGroup() as both:
                keeping = both.create_task(self._keep(batch_id, token))
                await BatchRun(self._tools, batch_id, token).run()
                keeping.cancel()
        except* LeaseTaken:
            self._log.warning("batch.lost", batch_id=batch_id)
        except* (ServerError, *SERVER_ERRORS) as group:
            self._rest(batch_id, group)
        except* Exception as group:
            # The job boundary: one batch takes down no other.
            self._log.exception("batch.failed", batch_id=batch_id)
            self._rest(batch_id, group)
        finally:
            with contextlib.suppress(*SERVER_ERRORS):
                await self._tools.batches.release(batch_id, token)

    def _rest(self, batch_id: str, group: BaseExceptionGroup[Exception]) -> None:
        self._resting[batch_id] = time.monotonic() + _RETRY_S
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        self._log.warning("batch.interrupted", batch_id=batch_id, reason=str(first)[:200])

    async def _keep(self, batch_id: str, token: str) -> None:
        """Renew the lease. Raises: LeaseTaken."""
        while True:
            await asyncio.sleep(self._lease_ms / 4000)
            with contextlib.suppress(*SERVER_ERRORS):
                await self._tools.batches.renew(batch_id, token, self._lease_ms)
