"""The client for backends on arq: jobs as JSON, and a cheap way to wait for their ends.

`Job.result()` of arq works as ever, at a round trip per waiting job and poll: good for some dozens
at `poll_delay=0.02`. `Results` asks for all waiting jobs of the process in one call.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Self

from arq.constants import result_key_prefix
from arq.jobs import Job, ResultNotFound, deserialize_result

from tokenbus.worker.control.arq_worker import connect_arq
from tokenbus.worker.control.errors import GenerationFailed, RemoteFailure
from tokenbus.worker.control.serializer import pack, unpack

if TYPE_CHECKING:
    from arq.connections import ArqRedis

__all__ = ["GenerationFailed", "RemoteFailure", "Results", "connect", "pack", "unpack"]

DEFAULT_QUEUE = "arq:tokenbus"
# Polls between two looks whether arq still knows the jobs that have no result.
_LOST_EVERY = 100


def connect(url: str, queue: str = DEFAULT_QUEUE) -> ArqRedis:
    """Make an arq client of the adapter's queue, for `enqueue_job("generate", prompt=…)`."""
    return connect_arq(url, queue)


class Results:
    """Waits for the results of many arq jobs with one call per poll. Use as a context manager."""

    def __init__(
        self, redis: ArqRedis, queue: str = DEFAULT_QUEUE, poll_delay_s: float = 0.02
    ) -> None:
        self._redis: Any = redis
        self._queue = queue
        self._poll_delay_s = poll_delay_s
        self._waiting: dict[str, set[asyncio.Future[bytes]]] = {}
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start to poll."""
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop to poll; waits that are left are cancelled."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for futures in self._waiting.values():
            for future in futures:
                future.cancel()

    async def of(self, job: Job | str) -> Any:
        """Return what `Job.result()` would.

        Raises: what the job raised (GenerationFailed, RemoteFailure, CancelledError);
        arq.jobs.ResultNotFound if arq knows neither job nor result.
        """
        job_id = job if isinstance(job, str) else job.job_id
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(job_id, set()).add(future)
        self._asked.set()
        try:
            raw = await future
        finally:
            futures = self._waiting.get(job_id, set())
            futures.discard(future)
            if not futures:
                self._waiting.pop(job_id, None)
        stored = deserialize_result(raw, deserializer=unpack)
        if not stored.success:
            error = stored.result
            raise error if isinstance(error, BaseException) else RemoteFailure("Error", str(error))
        return stored.result

    async def _run(self) -> None:
        num_polls = 0
        while True:
            self._asked.clear()
            if not self._waiting:
                await self._asked.wait()
            num_polls += 1
            try:
                await self._poll(look_for_lost=num_polls % _LOST_EVERY == 0)
            except Exception as error:
                # All waits learn of it; the next one tries again.
                self._fail(list(self._waiting), error)
            await asyncio.sleep(self._poll_delay_s)

    async def _poll(self, *, look_for_lost: bool) -> None:
        ids = list(self._waiting)
        # Looked up first: a job leaves the queue in the transaction that stores its result.
        scores = await self._redis.zmscore(self._queue, ids) if look_for_lost and ids else []
        values = await self._redis.mget([result_key_prefix + job_id for job_id in ids])
        for job_id, value in zip(ids, values, strict=True):
            if value is not None:
                for future in self._waiting.get(job_id, ()):
                    if not future.done():
                        future.set_result(value)
        lost = [i for i, s, v in zip(ids, scores, values, strict=False) if s is None and v is None]
        for job_id in lost:
            self._fail([job_id], ResultNotFound(f"arq knows neither job {job_id} nor its result"))

    def _fail(self, job_ids: list[str], error: Exception) -> None:
        for job_id in job_ids:
            for future in self._waiting.get(job_id, ()):
                if not future.done():
                    future.set_exception(error)
