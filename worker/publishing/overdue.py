"""Overdue jobs: started ahead, and without a token for so long that their log gets its marker.

A worker that vanishes under a long prefill is known to have begun the job by that marker.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from tokenbus.worker.publishing.log_states import LogAccess

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.worker.publishing.job_log import JobLog

OVERDUE_S = 1.0


class OverdueJobs:
    """Watches jobs that were started ahead; `touch` is given each that is overdue."""

    def __init__(self, touch: Callable[[JobLog], None]) -> None:
        self._touch = touch
        # Oldest first, with the time at which each is overdue by the loop's clock.
        self._started: deque[tuple[float, JobLog]] = deque()

    def watch(self, job: JobLog) -> None:
        """Look at a job again when it is overdue."""
        loop = asyncio.get_running_loop()
        if not self._started:
            loop.call_later(OVERDUE_S, self._look)
        self._started.append((loop.time() + OVERDUE_S, job))

    def _look(self) -> None:
        started, loop = self._started, asyncio.get_running_loop()
        now = loop.time()
        while started and started[0][0] <= now:
            job = started.popleft()[1]
            if job.access is LogAccess.AHEAD:
                job.is_overdue = True
                self._touch(job)
        if started:
            loop.call_at(started[0][0], self._look)
