"""Parking: jobs handed back to make room for a suspect or for a more urgent job.

A job that is handed back keeps its log; a worker that has room goes on with it, and no attempt is
counted.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import TYPE_CHECKING

from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.held.pool_member import PoolMember
    from tokenbus.worker.jobs.page_budget import PageBudget
    from tokenbus.worker.jobs.settlement import Settlement


# Pages of what was handed back are free once the queue has answered and the engine has counted.
FREEING_S = 1.0


class Parking:
    """Decides which jobs of one worker go back to the queue so that another may run."""

    def __init__(self, member: PoolMember, settlement: Settlement, page_budget: PageBudget) -> None:
        self._held_jobs = member.held_jobs
        self._suspect_wait_s = member.settings.suspect_wait_s
        self._metrics = member.metrics
        self._settlement = settlement
        self._page_budget = page_budget
        self._claimed_at: float | None = None
        self._parked_at = -FREEING_S
        self._log = get_logger()

    def clear_for_suspect(self) -> None:
        """Let what runs end for a while, then hand it back: a claimed suspect waits for room.

        Called after every pull that answered `clear`.
        """
        now = time.monotonic()
        if self._claimed_at is None:
            self._claimed_at = now
        if now - self._claimed_at < self._suspect_wait_s:
            return
        self._claimed_at = None
        for job in self._held_jobs.in_phase(Phase.PULLED, Phase.RUNNING):
            if job.evidence is None or not job.evidence.is_alone:
                self._settlement.hand_back(job, why="parked")

    def nothing_claimed(self) -> None:
        """Note that a pull found no suspect that waits for this worker."""
        self._claimed_at = None

    @property
    def is_parking(self) -> bool:
        """Tell whether room is being made, which nobody else may take."""
        return time.monotonic() - self._parked_at < FREEING_S

    def lowest_priority(self) -> int | None:
        """Return the number of the least urgent class that runs here, None if nothing does."""
        return self._held_jobs.book.least_urgent()

    def park_for(self, urgent: HeldJob) -> None:
        """Hand running jobs of a lower class back until `urgent` fits: last class, newest first.

        None is unless that makes enough room, nor while earlier hand-backs still free theirs.
        """
        if urgent.prepared is None or self.is_parking:
            return
        lower = [
            job
            for job in self._held_jobs.in_phase(Phase.RUNNING)
            if job.pulled.priority > urgent.pulled.priority
        ]
        lower.sort(key=lambda job: (job.pulled.priority, job.request_id), reverse=True)
        num_chosen = bisect_left(
            range(len(lower) + 1),
            True,
            key=lambda num: self._page_budget.has_room(urgent, set(lower[:num])),
        )
        if num_chosen > len(lower):
            return
        self._parked_at = time.monotonic()
        for job in lower[:num_chosen]:
            self._metrics.jobs_parked += 1
            self._log.info(
                "job.parked", job_id=job.job_id, epoch=job.epoch, urgent_job_id=urgent.job_id
            )
            self._settlement.hand_back(job, why="parked")
