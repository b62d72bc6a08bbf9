"""Completions of held jobs: gathered while a call is under way, and made together.

A job that ends alone is completed at once. Those that end meanwhile go together in the next call,
so that a crowd of short jobs costs a call for dozens and no task for each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tokenbus.producer.scripts.completing import MAX_COMPLETED, Completed
from tokenbus.worker.errors import SessionLost
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.jobs.finish_log import log_finished
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.held.pool_member import PoolMember

# A job that the server failed to complete, for a reason of its own, is tried again after this.
RETRY_S = 1.0


class Completions:
    """Completes committed jobs and lets them go (R9); `spawn` runs coroutines as tasks.

    One call is under way at a time, or none. Where it breaks off with the session all jobs are
    forgotten that wait for it or for the next one: their publishers tell of them again (R7).
    """

    def __init__(
        self, member: PoolMember, spawn: Callable[[Coroutine[None, None, None]], None]
    ) -> None:
        self._session = member.session
        self._completion = member.completion
        self._held_jobs = member.held_jobs
        self._metrics = member.metrics
        self._traces = member.traces
        self._spawn = spawn
        self._waiting: deque[tuple[HeldJob, Completed]] = deque()
        self._is_calling = False
        # Bound once: every line would bind a lazy one anew, whether it is written or not.
        self._log = get_logger().bind()

    def add(self, job: HeldJob, finish: str) -> None:
        """Complete a committed job as its terminal entry says, unless it is leaving already."""
        if job.is_leaving:
            return
        job.is_leaving = True
        lived = job.timings.lived
        self._waiting.append((job, Completed.of(job.job_id, finish, job.finish, lived=lived)))
        if not self._is_calling:
            self._is_calling = True
            self._spawn(self._run())

    async def _run(self) -> None:
        """Make calls until nobody waits."""
        try:
            while self._waiting:
                await self._complete([self._waiting.popleft() for _ in range(self._num_next())])
        except SessionLost:
            return
        except RedisError as error:
            self._log.exception("job.completion_refused")
            self._session.lose(f"a call was refused: {error}")
        finally:
            self._is_calling = False
            for job, _ in self._waiting:
                job.is_leaving = False
            self._waiting.clear()

    def _num_next(self) -> int:
        return min(len(self._waiting), MAX_COMPLETED)

    async def _complete(self, batch: list[tuple[HeldJob, Completed]]) -> None:
        jobs = [completed for _, completed in batch]
        try:
            whys = await self._session.call(lambda: self._completion.complete_many(jobs))
        finally:
            for job, _ in batch:
                job.is_leaving = False
        left = []
        for (job, completed), why in zip(batch, whys, strict=True):
            if why:
                self._log.error("job.completion_failed", job_id=job.job_id, why=why)
                self._spawn(self._add_later(job, completed.finish, self._session.generation))
            else:
                self._held_jobs.drop(job)
                left.append((job, log_finished(self._log, job, self._metrics)))
        self._traces.left(left)

    async def _add_later(self, job: HeldJob, finish: str, generation: int) -> None:
        """Try a job again that failed alone, unless its chain has started anew meanwhile."""
        await asyncio.sleep(RETRY_S)
        if generation == self._session.generation and job.phase is Phase.COMMITTED:
            self.add(job, finish)
