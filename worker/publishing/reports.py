"""Reports of publishers, read and handed to the job flow as events of a job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tokenbus.worker.messages.publishing import (
    AllLogged,
    Broken,
    ChoiceStopped,
    Committed,
    Decided,
    Fenced,
    Lost,
    Preceded,
    Progress,
    Taken,
)

if TYPE_CHECKING:
    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.held.held_jobs import HeldJobs
    from tokenbus.worker.messages.publishing import PublisherReport
    from tokenbus.worker.session import Session


class JobEvents(Protocol):
    """What happens to a job's log, told in the order in which it happens."""

    def taken(self, job: HeldJob, taken: Taken) -> None:
        """Go on after `taken`: the log was taken over."""
        ...

    def preceded(self, job: HeldJob, last: int) -> None:
        """Start over after token `last`: the log of a job that began from nothing has tokens."""
        ...

    def decided(self, job: HeldJob, decided: Decided) -> None:
        """Compute no more: the job has ended by itself."""
        ...

    def choice_stopped(self, job: HeldJob, choice: int) -> None:
        """Compute no more of a choice: it met a stop string."""
        ...

    def committed(self, job: HeldJob, committed: Committed) -> None:
        """Complete a job: its terminal entry stands in the log."""
        ...

    def fenced(self, job: HeldJob, epoch: int) -> None:
        """Let go of a job: its log belongs to a later owner, at `epoch`."""
        ...

    def broken(self, job: HeldJob, why: str) -> None:
        """Let another start do better: the log breaks the rules."""
        ...

    def all_logged(self, job: HeldJob, num_logged: int) -> None:
        """Return a job to the queue: what it has is in its log."""
        ...

    def progressed(self, progress: Progress) -> None:
        """Count what a publisher has done, for no job in particular."""
        ...


class ReportReader:
    """Receives the reports of all publishers of one worker.

    Reports of a lost session are dropped: the next opening of the gate brings them again.
    """

    def __init__(self, session: Session, held_jobs: HeldJobs, events: JobEvents) -> None:
        self._session = session
        self._held_jobs = held_jobs
        self._events = events

    def receive(self, report: PublisherReport) -> None:
        """Handle an report of any publisher."""
        if isinstance(report, Progress):
            self._events.progressed(report)
            return
        if isinstance(report, Lost):
            if report.generation == self._session.generation:
                self._session.lose(f"a publisher: {report.reason}")
            return
        generation = getattr(report, "generation", None)
        if generation not in (None, self._session.generation):
            return
        job = self._held_jobs.by_request(getattr(report, "key", 0))
        if job is not None:
            self._tell(job, report)

    def _tell(self, job: HeldJob, report: PublisherReport) -> None:
        events = self._events
        match report:
            case Taken():
                events.taken(job, report)
            case Preceded(last=last):
                events.preceded(job, last)
            case Decided():
                events.decided(job, report)
            case ChoiceStopped(choice=choice):
                events.choice_stopped(job, choice)
            case Committed():
                events.committed(job, report)
            case Fenced(epoch=epoch):
                events.fenced(job, epoch)
            case Broken(why=why):
                events.broken(job, why)
            case AllLogged(num_logged=num_logged):
                events.all_logged(job, num_logged)
            case _:
                raise TypeError(f"unexpected report {type(report).__name__}")
