"""The held jobs of a worker, found by job id and by the engine's request id."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tokenbus.worker.held.held_job import HeldJob, Phase
from tokenbus.worker.held.job_book import JobBook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenbus.producer.scripts.replies import PulledJob


class HeldJobs:
    """The jobs between pull and completion.

    `by_request` finds a job by the engine's id; `book` is kept up to date by the jobs.
    """

    def __init__(self) -> None:
        self.book: JobBook[HeldJob] = JobBook()
        self._jobs: dict[str, HeldJob] = {}
        self._by_request: dict[int, HeldJob] = {}
        # Asked for every token of every job, so without a frame of its own.
        self.by_request: Callable[[int], HeldJob | None] = self._by_request.get
        self._last_request_id = 0
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._listeners: list[Callable[[HeldJob], None]] = []

    def __iter__(self) -> Iterator[HeldJob]:
        """Yield the jobs as of now; the held jobs may change meanwhile."""
        return iter(list(self._jobs.values()))

    def __len__(self) -> int:
        """Count the jobs."""
        return len(self._jobs)

    def when_gone(self, tell: Callable[[HeldJob], None]) -> None:
        """Tell of each job that leaves, at once."""
        self._listeners.append(tell)

    def take(self, pulled: PulledJob) -> HeldJob:
        """Register a pulled job; an older epoch of it is dropped."""
        stale = self._jobs.get(pulled.job_id)
        if stale is not None:
            self.drop(stale)
        self._last_request_id += 1
        job = HeldJob(pulled, self._last_request_id, self.book)
        self._jobs[job.job_id] = job
        self._by_request[job.request_id] = job
        self._emptied.clear()
        return job

    def drop(self, job: HeldJob) -> None:
        """Let go of a job that this worker holds no more; safe to repeat."""
        if job.phase is Phase.GONE:
            return
        job.move_to(Phase.GONE)
        if self._jobs.get(job.job_id) is job:
            del self._jobs[job.job_id]
        del self._by_request[job.request_id]
        for tell in self._listeners:
            tell(job)
        if not self._jobs:
            self._emptied.set()

    def get(self, job_id: str) -> HeldJob | None:
        """Find a job by its id."""
        return self._jobs.get(job_id)

    def in_phase(self, *phases: Phase) -> list[HeldJob]:
        """List the jobs in any of the phases, oldest first."""
        return [job for job in self._jobs.values() if job.phase in phases]

    async def wait_empty(self) -> None:
        """Wait until no job is left."""
        await self._emptied.wait()
