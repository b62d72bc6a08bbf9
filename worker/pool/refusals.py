"""Refusals of what a pull brought: entries that are no jobs, jobs too big for this worker."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tokenbus.worker.errors import SessionLost
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenbus.producer.scripts.replies import Ending
    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.held.pool_member import PoolMember


class Refusals:
    """Writes the ends of entries that the pull refused, and unpulls jobs."""

    def __init__(self, member: PoolMember) -> None:
        self._session = member.session
        self._scripts = member.scripts
        self._completion = member.completion
        self._held_jobs = member.held_jobs
        self._worker = member.worker
        self._metrics = member.metrics
        self._log = get_logger()

    async def end(self, endings: Iterable[Ending], asked_at: float) -> None:
        """Write the failed events of entries that the pull refused."""
        for ending in endings:
            self._log.warning("job.dead_lettered", job_id=ending.job_id, finish=ending.finish)
            try:
                await self._session.call(partial(self._completion.end_unowned, ending, asked_at))
            except SessionLost:
                continue
            except RedisError:
                self._log.exception("job.end_refused", job_id=ending.job_id)

    async def unpull(self, job: HeldJob, *, loses_prefix: bool) -> bool:
        """Return a job as if it had not been pulled, but for what its prompt turned out to need.

        Returns: whether it has left; it is still held where the session was lost meanwhile.
        """
        try:
            await self._session.call(
                lambda: self._scripts.lease.unpull(
                    self._worker,
                    job.job_id,
                    job.epoch,
                    job.prompt_tokens,
                    loses_prefix=loses_prefix,
                )
            )
        except SessionLost:
            return False
        except RedisError:
            self._log.exception("job.undo_refused", job_id=job.job_id)
        else:
            self._metrics.jobs_undone += 1
        self._held_jobs.drop(job)
        return True
