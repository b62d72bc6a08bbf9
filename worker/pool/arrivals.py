"""Arrivals: jobs that a pull brought, held at once, started when their size is known.

What tokenises to more than the pull counted waits at the head of the line, or is unpulled where
that place is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from tokenbus.producer.scripts.replies import PulledJob
    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.held.pool_member import PoolMember
    from tokenbus.worker.jobs.head_of_line import HeadOfLine
    from tokenbus.worker.jobs.held_prefixes import HeldPrefixes
    from tokenbus.worker.jobs.log_opening import LogOpener
    from tokenbus.worker.jobs.page_budget import PageBudget
    from tokenbus.worker.jobs.start import Starter
    from tokenbus.worker.jobs.suspects import Suspects
    from tokenbus.worker.pool.refusals import Refusals


class Arrivals:
    """Registers pulled jobs, has them prepared and their logs taken over."""

    def __init__(
        self,
        member: PoolMember,
        *,
        starter: Starter,
        log_opener: LogOpener,
        head_of_line: HeadOfLine,
        page_budget: PageBudget,
        prefixes: HeldPrefixes,
        suspects: Suspects,
        refusals: Refusals,
    ) -> None:
        self._held_jobs = member.held_jobs
        self._metrics = member.metrics
        self._starter = starter
        self._log_opener = log_opener
        self._head_of_line = head_of_line
        self._page_budget = page_budget
        self._costs = page_budget.costs
        self._prefixes = prefixes
        self._suspects = suspects
        self._refusals = refusals
        self._log = get_logger()

    def register(self, pulled: PulledJob) -> HeldJob:
        """Note a job as held, counted as large as the pull says."""
        job = self._held_jobs.take(pulled)
        self._prefixes.pulled(job)
        self._suspects.watch(job)
        self._metrics.jobs_pulled += 1
        if job.is_waiting:
            self._head_of_line.join(job)
        self._log.debug(
            "job.received",
            job_id=job.job_id,
            epoch=job.epoch,
            attempts=pulled.attempts,
            pages=pulled.pages,
            head_of_line=pulled.head_of_line,
        )
        return job

    async def bring_in(self, job: HeldJob) -> None:
        """Prepare a job and let its log be taken over, or unpull it if it is too big."""
        await self._starter.prepare(job)
        self._prefixes.prepared(job)
        if job.phase is not Phase.PULLED:
            return
        if self._costs.exceeds_pool(job):
            await self._unpull(job)
            return
        if job.prepared is not None and not job.is_waiting and not self._still_fits(job):
            if self._head_of_line.is_taken:
                await self._unpull(job)
                return
            self._head_of_line.join(job)
        self._log_opener.open_log(job)
        if self._costs.needs_less(job):
            # A pull that found the pool full may find room now.
            self._head_of_line.wake_pull_loop()

    def _still_fits(self, job: HeldJob) -> bool:
        """Tell whether the exact size is covered by what the pull counted, or else by free room."""
        if self._costs.is_as_pulled(job):
            return True
        return self._page_budget.budget() >= 0 and self._page_budget.free_rows() >= 0

    async def _unpull(self, job: HeldJob) -> None:
        loses_prefix = self._costs.shares_less(job)
        if not await self._refusals.unpull(job, loses_prefix=loses_prefix):
            self._log_opener.open_log(job)
