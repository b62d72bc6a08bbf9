"""Arrivals: jobs that a pull brought, held at once, started when their size is known.

They are read and tokenised by the slice, with one call and in one thread if at all; between two
slices everything else has its turn, the renewal of the lease for one. What tokenises to more than
the pull counted waits at the head of the line, or is unpulled where that place is taken.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.logs import get_logger
from tokenbus.worker.request_tools import has_tools

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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

# A slice takes the event loop 1 to 4 ms, most of it for chat templates.
SLICE_JOBS = 32
# Its text is tokenised in 15 ms at 2 MB/s, for which the shortest of its jobs waits too.
SLICE_BYTES = 32 * 1024


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
        # Bound once: every line would bind a lazy one anew, whether it is written or not.
        self._log = get_logger().bind()

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

    async def bring_in(self, jobs: Sequence[HeldJob]) -> None:
        """Prepare jobs and let their logs be taken over; unpull those that are too big."""
        slices = list(_slices(jobs))
        if len(slices) == 1:
            await self._bring_in(slices[0])
            return
        async with asyncio.TaskGroup() as tasks:
            for each in slices:
                tasks.create_task(self._bring_in(each))
                await asyncio.sleep(0)

    async def _bring_in(self, jobs: Sequence[HeldJob]) -> None:
        prompts = await self._starter.tokenise(jobs)
        too_big, needs_less = [], False
        for job, pending in zip(jobs, prompts, strict=True):
            self._starter.prepare(job, pending)
            self._prefixes.prepared(job)
            if job.phase is not Phase.PULLED:
                continue
            if self._is_too_big(job):
                too_big.append(job)
                continue
            self._log_opener.open_log(job)
            needs_less = needs_less or self._costs.needs_less(job)
        if needs_less:
            # A pull that found the pool full may find room now.
            self._head_of_line.wake_pull_loop()
        if too_big:
            async with asyncio.TaskGroup() as tasks:
                for job in too_big:
                    tasks.create_task(self._unpull(job))

    def _is_too_big(self, job: HeldJob) -> bool:
        """Tell whether a tokenised job has to go, or let it wait if it only lacks room for now."""
        if self._costs.exceeds_pool(job):
            return True
        if job.prepared is None or job.is_waiting or self._still_fits(job):
            return False
        if self._head_of_line.is_taken:
            return True
        self._head_of_line.join(job)
        return False

    def _still_fits(self, job: HeldJob) -> bool:
        """Tell whether the exact size is covered by what the pull counted, or else by free room."""
        if self._costs.is_as_pulled(job):
            return True
        return self._page_budget.budget() >= 0 and self._page_budget.free_rows() >= 0

    async def _unpull(self, job: HeldJob) -> None:
        loses_prefix = self._costs.shares_less(job)
        if not await self._refusals.unpull(job, loses_prefix=loses_prefix):
            self._log_opener.open_log(job)


def _slices(jobs: Sequence[HeldJob]) -> Iterator[Sequence[HeldJob]]:
    """Cut what a pull brought: so many jobs and bytes of requests, or one job.

    A job with tools stands alone: nobody waits for the work on its schemas.
    """
    yield from _slices_of_plain([job for job in jobs if not has_tools(job.pulled.request)])
    yield from ([job] for job in jobs if has_tools(job.pulled.request))


def _slices_of_plain(jobs: Sequence[HeldJob]) -> Iterator[Sequence[HeldJob]]:
    begin = num_bytes = 0
    for idx, job in enumerate(jobs):
        num_bytes += len(job.pulled.request)
        if idx > begin and (idx - begin == SLICE_JOBS or num_bytes > SLICE_BYTES):
            yield jobs[begin:idx]
            begin, num_bytes = idx, len(job.pulled.request)
    if jobs:
        yield jobs[begin:]
