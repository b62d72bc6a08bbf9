"""All publishers of one worker: who publishes which job, and what becomes of their answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tokenbus.worker.hooks import nobody
from tokenbus.worker.logs import get_logger
from tokenbus.worker.publishing.messages import (
    AllLogged,
    Broken,
    ChoiceStopped,
    CloseGate,
    Committed,
    Decide,
    Decided,
    Drop,
    Fenced,
    HandBack,
    Lost,
    OpenGate,
    Preceded,
    Progress,
    Renewed,
    Taken,
    TakeOver,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenbus.producer.contract.events import Failure
    from tokenbus.worker.engine.messages import StepRecord
    from tokenbus.worker.held_job import HeldJob
    from tokenbus.worker.held_jobs import HeldJobs
    from tokenbus.worker.publishing.links import PublisherLink
    from tokenbus.worker.publishing.messages import Order, PublisherReport, TextRules
    from tokenbus.worker.session import Session

# A process that uses more of a core than this gets company for the jobs to come.
_FULL_SHARE = 0.6
_LOOK_INTERVAL_S = 1.0


class PublisherPool:
    """Passes orders to the publisher of a job, which stays its publisher for life.

    Hooks are told, per job, what the publisher answered. Answers of a lost session are dropped: the
    next opening of the gate brings them again.
    """

    def __init__(
        self,
        session: Session,
        held_jobs: HeldJobs,
        links: Sequence[PublisherLink],
        make_link: Callable[[], PublisherLink] | None = None,
        max_links: int = 0,
    ) -> None:
        self._session = session
        self._held_jobs = held_jobs
        self._links = list(links)
        self._make_link = make_link
        self._max_links = max_links
        self._gate: OpenGate | None = None
        self._log = get_logger()
        self.on_taken: Callable[[HeldJob, Taken], None] = nobody
        self.on_preceded: Callable[[HeldJob, int], None] = nobody
        self.on_decided: Callable[[HeldJob, Decided], None] = nobody
        self.on_choice_stopped: Callable[[HeldJob, int], None] = nobody
        self.on_committed: Callable[[HeldJob, str], None] = nobody
        self.on_fenced: Callable[[HeldJob, int], None] = nobody
        self.on_broken: Callable[[HeldJob, str], None] = nobody
        self.on_settled: Callable[[HeldJob, int], None] = nobody
        self.on_progress: Callable[[Progress], None] = nobody
        session.on_lost = self._close

    @property
    def num_processes(self) -> int:
        """Count the processes that publish for this worker, itself not included."""
        return len(self._links) if self._max_links else 0

    def open_gate(self) -> None:
        """Let all write, after a reconcile; what they know about the logs is void."""
        self._gate = OpenGate(self._session.generation, self._session.renewed_at)
        self._tell_all(self._gate)

    def renewed(self) -> None:
        """Tell all that the lease was renewed."""
        self._tell_all(Renewed(self._session.renewed_at))

    def take_over(self, job: HeldJob, rules: TextRules | None, *, is_ahead: bool = False) -> None:
        """Let a job's log be taken over, once; `is_ahead` if the engine gets the job meanwhile."""
        job.publisher_link = min(self._links, key=lambda publisher_link: publisher_link.num_jobs)
        job.publisher_link.num_jobs += 1
        job.publisher_link.send(
            TakeOver(
                key=job.request_id,
                job_id=job.job_id,
                epoch=job.epoch,
                prompt_tokens=job.prompt_tokens,
                rules=rules,
                is_ahead=is_ahead,
            )
        )

    def take_step(self, step: StepRecord) -> None:
        """Pass a step's tokens on; each publisher link takes the rows of its own jobs."""
        for publisher_link in self._links:
            publisher_link.send_step(step)

    def decide(self, job: HeldJob, reason: str, error: Failure | None = None) -> None:
        """End a job with what it has."""
        if job.publisher_link is not None:
            job.publisher_link.send(Decide(job.request_id, reason, error))

    def give_back(self, job: HeldJob) -> None:
        """Let what a job has be logged before it returns to the queue."""
        if job.publisher_link is not None:
            job.publisher_link.send(HandBack(job.request_id))

    def forget(self, job: HeldJob) -> None:
        """Let go of a job that has left the worker."""
        if job.publisher_link is not None:
            job.publisher_link.send(Drop(job.request_id))
            job.publisher_link.num_jobs -= 1
            job.publisher_link = None

    def receive(self, answer: PublisherReport) -> None:
        """Handle an answer of any publisher link."""
        if isinstance(answer, Progress):
            self.on_progress(answer)
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
            self._pass_on(job, answer)

    async def run(self) -> None:
        """Run all publisher links, and start more where the rate asks for them."""
        async with asyncio.TaskGroup() as tasks:
            for publisher_link in self._links:
                tasks.create_task(publisher_link.run())
            while self._make_link is not None and len(self._links) < self._max_links:
                await asyncio.sleep(_LOOK_INTERVAL_S)
                shares = [publisher_link.busy_share() for publisher_link in self._links]
                if min(shares) > _FULL_SHARE:
                    await self._add(self._make_link(), tasks)

    async def stop(self) -> None:
        """End all publisher links."""
        for publisher_link in self._links:
            await publisher_link.stop()

    async def _add(self, publisher_link: PublisherLink, tasks: asyncio.TaskGroup) -> None:
        await publisher_link.start()
        self._links.append(publisher_link)
        tasks.create_task(publisher_link.run())
        if self._gate is not None and self._session.is_open:
            publisher_link.send(OpenGate(self._session.generation, self._session.renewed_at))
        self._log.info("publisher.started", publishers=len(self._links))

    def _pass_on(self, job: HeldJob, answer: PublisherReport) -> None:
        match answer:
            case Taken():
                self.on_taken(job, answer)
            case Preceded(last=last):
                self.on_preceded(job, last)
            case Decided():
                self.on_decided(job, answer)
            case ChoiceStopped(choice=choice):
                self.on_choice_stopped(job, choice)
            case Committed(finish=finish):
                self.on_committed(job, finish)
            case Fenced(epoch=epoch):
                self.on_fenced(job, epoch)
            case Broken(why=why):
                self.on_broken(job, why)
            case AllLogged(num_logged=num_logged):
                self.on_settled(job, num_logged)
            case _:
                raise TypeError(f"unexpected answer {type(answer).__name__}")

    def _tell_all(self, order: Order) -> None:
        for publisher_link in self._links:
            publisher_link.send(order)

    def _close(self, _: str) -> None:
        self._tell_all(CloseGate())
