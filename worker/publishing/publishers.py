"""All publishers of one worker: who publishes which job, and what becomes of their answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tokenbus.worker.hooks import nobody
from tokenbus.worker.logs import get_logger
from tokenbus.worker.publishing.messages import (
    Broken,
    ChoiceStopped,
    CloseGate,
    Committed,
    Decide,
    Decided,
    Fenced,
    Forget,
    GiveBack,
    Lost,
    OpenGate,
    Preceded,
    Progress,
    Renewed,
    Settled,
    Taken,
    TakeOver,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenbus.producer.events import Failure
    from tokenbus.worker.handoff import StepRecord
    from tokenbus.worker.held_job import HeldJob
    from tokenbus.worker.publishing.messages import Answer, Order, TextRules
    from tokenbus.worker.publishing.presses import Press
    from tokenbus.worker.roster import Roster
    from tokenbus.worker.session import Session

# A process that uses more of a core than this gets company for the jobs to come.
_FULL_SHARE = 0.6
_LOOK_INTERVAL_S = 1.0


class Publishers:
    """Passes orders to the press of a job, which stays its press for life.

    Hooks are told, per job, what the press answered. Answers of a lost session are dropped: the
    next opening of the gate brings them again.
    """

    def __init__(
        self,
        session: Session,
        roster: Roster,
        presses: Sequence[Press],
        make_press: Callable[[], Press] | None = None,
        max_presses: int = 0,
    ) -> None:
        self._session = session
        self._roster = roster
        self._presses = list(presses)
        self._make_press = make_press
        self._max_presses = max_presses
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
        return len(self._presses) if self._max_presses else 0

    def open_gate(self) -> None:
        """Let all write, after a reconcile; what they know about the logs is void."""
        self._gate = OpenGate(self._session.generation, self._session.renewed_at)
        self._tell_all(self._gate)

    def renewed(self) -> None:
        """Tell all that the lease was renewed."""
        self._tell_all(Renewed(self._session.renewed_at))

    def take_over(self, job: HeldJob, rules: TextRules | None, *, is_ahead: bool = False) -> None:
        """Let a job's log be taken over, once; `is_ahead` if the engine gets the job meanwhile."""
        job.press = min(self._presses, key=lambda press: press.num_jobs)
        job.press.num_jobs += 1
        job.press.send(
            TakeOver(job.request_id, job.job_id, job.epoch, job.prompt_tokens, rules, is_ahead)
        )

    def take_step(self, step: StepRecord) -> None:
        """Pass a step's tokens on; each press takes the rows of its own jobs."""
        self._tell_all(step)

    def decide(self, job: HeldJob, reason: str, error: Failure | None = None) -> None:
        """End a job with what it has."""
        if job.press is not None:
            job.press.send(Decide(job.request_id, reason, error))

    def give_back(self, job: HeldJob) -> None:
        """Let what a job has be logged before it returns to the queue."""
        if job.press is not None:
            job.press.send(GiveBack(job.request_id))

    def forget(self, job: HeldJob) -> None:
        """Let go of a job that has left the worker."""
        if job.press is not None:
            job.press.send(Forget(job.request_id))
            job.press.num_jobs -= 1
            job.press = None

    def receive(self, answer: Answer) -> None:
        """Handle an answer of any press."""
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
        job = self._roster.by_request(getattr(answer, "key", 0))
        if job is not None:
            self._pass_on(job, answer)

    async def run(self) -> None:
        """Run all presses, and start more where the rate asks for them."""
        async with asyncio.TaskGroup() as tasks:
            for press in self._presses:
                tasks.create_task(press.run())
            while self._make_press is not None and len(self._presses) < self._max_presses:
                await asyncio.sleep(_LOOK_INTERVAL_S)
                shares = [press.busy_share() for press in self._presses]
                if min(shares) > _FULL_SHARE:
                    await self._add(self._make_press(), tasks)

    async def stop(self) -> None:
        """End all presses."""
        for press in self._presses:
            await press.stop()

    async def _add(self, press: Press, tasks: asyncio.TaskGroup) -> None:
        await press.start()
        self._presses.append(press)
        tasks.create_task(press.run())
        if self._gate is not None and self._session.is_open:
            press.send(OpenGate(self._session.generation, self._session.renewed_at))
        self._log.info("publisher.started", publishers=len(self._presses))

    def _pass_on(self, job: HeldJob, answer: Answer) -> None:
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
            case Settled(num_logged=num_logged):
                self.on_settled(job, num_logged)
            case _:
                raise TypeError(f"unexpected answer {type(answer).__name__}")

    def _tell_all(self, order: Order) -> None:
        for press in self._presses:
            press.send(order)

    def _close(self, _: str) -> None:
        self._tell_all(CloseGate())
