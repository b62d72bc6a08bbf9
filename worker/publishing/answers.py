"""What publishers answer, and the events of a job that it amounts to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tokenbus.worker.publishing.messages import (
    Broken,
    ChoiceStopped,
    Committed,
    Decided,
    Fenced,
    Lost,
    Preceded,
    Progress,
    Settled,
    Taken,
)

if TYPE_CHECKING:
    from tokenbus.worker.held_job import HeldJob
    from tokenbus.worker.held_jobs import HeldJobs
    from tokenbus.worker.publishing.messages import Answer
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

    def committed(self, job: HeldJob, finish: str) -> None:
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


class AnswerReader:
    """Receives the answers of all publishers of one worker.

    Answers of a lost session are dropped: the next opening of the gate brings them again.
    """

    def __init__(self, session: Session, held_jobs: HeldJobs, events: JobEvents) -> None:
        self._session = session
        self._held_jobs = held_jobs
        self._events = events

    def receive(self, answer: Answer) -> None:
        """Handle an answer of any publisher."""
        if isinstance(answer, Progress):
            self._events.progressed(answer)
            return
        if isinstance(answer, Lost):
            if answer.generation == self._session.generation:
                self._session.lose(f"a publisher: {answer.reason}")
            return
        generation = getattr(answer, "generation", None)
        if generation not in (None, self._session.generation):
            return
        job = self._held_jobs.by_request(getattr(answer, "key", 0))
        if job is not None:
            self._tell(job, answer)

    def _tell(self, job: HeldJob, answer: Answer) -> None:
        events = self._events
        match answer:
            case Taken():
                events.taken(job, answer)
            case Preceded(last=last):
                events.preceded(job, last)
            case Decided():
                events.decided(job, answer)
            case ChoiceStopped(choice=choice):
                events.choice_stopped(job, choice)
            case Committed(finish=finish):
                events.committed(job, finish)
            case Fenced(epoch=epoch):
                events.fenced(job, epoch)
            case Broken(why=why):
                events.broken(job, why)
            case Settled(num_logged=num_logged):
                events.all_logged(job, num_logged)
            case _:
                raise TypeError(f"unexpected answer {type(answer).__name__}")
