"""Suspects: held jobs against which something speaks, until they pass the place of their crash."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.producer.scripts.evidence import Crash, Crowd
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.held.held_jobs import HeldJobs
    from tokenbus.worker.jobs.head_of_line import HeadOfLine
    from tokenbus.worker.jobs.settlement import Settlement
    from tokenbus.worker.metrics import Metrics

# More suspects than any ride allows: a worker that tells of so many is given none.
_FULL = Crowd(num_suspects=1_000_000, least_ride=1)


class Suspects:
    """Tells the pull which suspects are here, clears those that pass, and blames at a crash.

    An engine that starts and then dies of every job is at fault itself. So jobs that die alone, one
    after another without a token in between, are found guilty on that worker one at most; it
    takes other jobs next, to see whether it can run any.
    """

    def __init__(
        self,
        held_jobs: HeldJobs,
        *,
        settlement: Settlement,
        head_of_line: HeadOfLine,
        metrics: Metrics,
    ) -> None:
        self._held_jobs = held_jobs
        self._settlement = settlement
        self._head_of_line = head_of_line
        self._metrics = metrics
        self._open: set[HeldJob] = set()
        self._died_alone = ""
        self._avoids = False
        self._log = get_logger()
        held_jobs.when_gone(self._open.discard)

    def watch(self, job: HeldJob) -> None:
        """Follow a pulled job, if something speaks against it."""
        if job.evidence is not None:
            self._open.add(job)

    @property
    def crowd(self) -> Crowd:
        """Tell what a pull has to know of the jobs that are held."""
        if self._avoids:
            return _FULL
        rides = [job.evidence.ride for job in self._open if job.evidence and job.evidence.ride]
        return Crowd(len(rides), min(rides, default=0), len(self._open))

    @property
    def keeps_others_off(self) -> bool:
        """Tell whether nothing may be pulled: one runs alone, or a crash is not told yet."""
        return any(job.evidence and job.evidence.is_alone for job in self._open) or any(
            job.crash is not None for job in self._held_jobs.book.returning
        )

    def pulled(self, num_jobs: int) -> None:
        """Note what a pull brought: where there is nothing else, suspects are welcome again."""
        if not num_jobs:
            self._avoids = False

    def stepped(self, *, delivered: bool) -> None:
        """Look after a step who has passed its place."""
        if delivered and (self._died_alone or self._avoids):
            self._died_alone, self._avoids = "", False
        if self._open:
            self._clear()

    def _clear(self) -> None:
        passed = [
            job
            for job in self._open
            if job.evidence is not None
            and job.phase is Phase.RUNNING
            and job.evidence.is_passed(job.first, job.last, job.num_rows)
        ]
        for job in passed:
            self._open.discard(job)
            was_alone = job.evidence is not None and job.evidence.is_alone
            job.evidence, job.passed = None, "alone" if was_alone else "all"
            self._metrics.suspects_cleared += 1
            self._log.info("job.cleared", job_id=job.job_id, epoch=job.epoch, alone=was_alone)
            if was_alone:
                # It goes on beside others that have passed, where its death would tell something.
                self._settlement.hand_back(job, why="cleared")
        if passed:
            self._head_of_line.wake_pull_loop()

    def blame(self, aboard: Sequence[HeldJob]) -> bool:
        """Hand back what was on board of an engine that died, with what is known of each.

        Returns: whether the search for whose fault it was goes on; not where it may be the
        engine's.
        """
        blamed = self._blamed(aboard)
        is_sound = True
        if len(aboard) == 1:
            [alone] = aboard
            is_sound = self._died_alone in ("", alone.job_id)
            self._died_alone = self._died_alone or alone.job_id
            self._avoids = not is_sound
        for job in aboard:
            crash = Crash(
                cause="engine",
                place=job.last,
                since=job.last - job.first,
                num_suspected=len(blamed),
                num_beside=len(aboard) - len(blamed),
                is_beside=job not in blamed,
                is_sound=is_sound,
            )
            self._settlement.hand_back(job, crash=crash)
        return bool(aboard) and is_sound

    def _blamed(self, aboard: Sequence[HeldJob]) -> set[HeldJob]:
        """Return who is blamed: the suspects on board, where there are none all.

        Beside one that has passed alone, each that has not passed yet is as likely.
        """
        suspects = {job for job in aboard if job.evidence is not None and job.evidence.ride}
        if not suspects:
            return set(aboard)
        if all(job.evidence is not None and job.evidence.has_passed_alone for job in suspects):
            suspects |= self._open.intersection(aboard)
        return suspects
