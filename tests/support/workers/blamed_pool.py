"""A pool whose engines die of planted jobs: the real scripts, and no process but the server's.

A round is a step of every engine: each job on board makes a token, or the engine dies. A worker
then does what a real one does, and all of it before the next round.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workers.stubs import StubWorker, first_step

from tokenbus.engine.chat.usage import Usage
from tokenbus.producer.contract.events import Finish
from tokenbus.producer.scripts.evidence import Crash, Crowd
from tokenbus.producer.scripts.replies import PullStatus, RequeueStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.completion import JobCompletion
    from tokenbus.producer.scripts.replies import PulledJob

PULL_JOBS = 32


@dataclass(slots=True)
class Rider:
    """One job on board: where it began, where it is, and whether it has still to pass its place."""

    pulled: PulledJob
    start: int
    last: int
    is_open: bool

    @property
    def made(self) -> int:
        """Count the tokens since its start."""
        return self.last - self.start

    @property
    def ride(self) -> int:
        """Return with how many suspects it may be, 0 where it is none."""
        evidence = self.pulled.evidence
        return evidence.ride if evidence is not None and self.is_open else 0

    @property
    def has_passed_alone(self) -> bool:
        """Tell whether it is a suspect that rides as the only one, after it has run alone."""
        return self.ride == 1 and not self.is_alone

    @property
    def is_alone(self) -> bool:
        """Tell whether nothing may be beside it."""
        evidence = self.pulled.evidence
        return evidence is not None and self.is_open and evidence.is_alone


@dataclass(eq=False)
class BlamedPool:
    """Workers of `num_rows` rows, jobs of `num_tokens` tokens, and what engines die of.

    `fault` tells whether an engine with these jobs on board dies in this step.
    """

    scripts: Scripts
    completion: JobCompletion
    fault: Callable[[dict[str, Rider]], bool]
    num_tokens: int
    num_rows: int = 256
    num_deaths: int = 0
    num_rounds: int = 0
    poisoned: set[str] = field(default_factory=set)
    ended_at: dict[str, int] = field(default_factory=dict)
    boards: dict[StubWorker, dict[str, Rider]] = field(default_factory=dict)
    _logged: dict[str, int] = field(default_factory=dict)

    async def hire(self, num_workers: int = 1) -> None:
        """Let workers come."""
        for _ in range(num_workers):
            worker = StubWorker(self.scripts)
            await worker.reconcile()
            self.boards[worker] = {}

    async def run(self, num_jobs: int, max_rounds: int) -> None:
        """Run until all jobs have ended. Raises: AssertionError after so many rounds."""
        while len(self.ended_at) + len(self.poisoned) < num_jobs:
            self.num_rounds += 1
            if self.num_rounds > max_rounds:
                raise AssertionError(f"{num_jobs - len(self.ended_at)} jobs have not ended")
            for worker in self.boards:
                await self._pull(worker)
                await self._step(worker)

    async def _pull(self, worker: StubWorker) -> None:
        """Pull until nothing more comes."""
        board, status = self.boards[worker], PullStatus.JOBS
        while status is PullStatus.JOBS and not any(rider.is_alone for rider in board.values()):
            rows = self.num_rows - len(board)
            if rows < 1:
                return
            rides = [rider.ride for rider in board.values() if rider.ride]
            num_open = sum(rider.is_open for rider in board.values())
            reply = await worker.pull(
                pages=10**6,
                max_jobs=min(PULL_JOBS, rows),
                max_rows=rows,
                crowd=Crowd(len(rides), min(rides, default=0), num_open),
            )
            status = reply.status
            for job in reply.jobs:
                start = self._logged.get(job.job_id, 0)
                board[job.job_id] = Rider(job, start, start, job.evidence is not None)

    async def _step(self, worker: StubWorker) -> None:
        board = self.boards[worker]
        if board and self.fault(board):
            await self._die(worker)
            return
        for job_id, rider in list(board.items()):
            rider.last += 1
            self._logged[job_id] = rider.last
            if rider.last >= self.num_tokens:
                del board[job_id]
                self.ended_at[job_id] = self.num_rounds
                finish = Finish("length", Usage(32, 0, rider.last)).dump()
                await first_step(self.scripts, job_id, finish, 32 + rider.last)
            elif rider.is_open:
                await self._look(worker, rider)

    async def _look(self, worker: StubWorker, rider: Rider) -> None:
        """Clear a job that passes its place; one that passes alone goes back."""
        job, evidence = rider.pulled, rider.pulled.evidence
        if evidence is None or not evidence.is_passed(rider.start, rider.last, 1):
            return
        rider.is_open = False
        if evidence.is_alone:
            del self.boards[worker][job.job_id]
            await self.scripts.lease.requeue(
                worker.name, job.job_id, job.epoch, num_logged=rider.last, passed="alone"
            )

    async def _die(self, worker: StubWorker) -> None:
        self.num_deaths += 1
        riders, self.boards[worker] = self.boards[worker], {}
        blamed = {job_id for job_id, rider in riders.items() if rider.ride} or set(riders)
        if all(riders[job_id].has_passed_alone for job_id in blamed):
            blamed |= {job_id for job_id, rider in riders.items() if rider.is_open}
        for job_id, rider in riders.items():
            crash = Crash(
                cause="engine",
                place=rider.last,
                since=rider.made,
                num_suspected=len(blamed),
                num_beside=len(riders) - len(blamed),
                is_beside=job_id not in blamed,
            )
            has_passed = rider.pulled.evidence is not None and not rider.is_open
            status = await self.scripts.lease.requeue(
                worker.name,
                job_id,
                rider.pulled.epoch,
                num_logged=rider.last,
                crash=crash,
                passed="all" if has_passed else "",
            )
            if status is RequeueStatus.ENDING:
                self.poisoned.add(job_id)
                await self.completion.cancel(job_id)
