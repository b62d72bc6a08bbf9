"""Moves tokens into the logs, in order and once, and commits the ends.

Each job wants at most one thing of its log: a takeover, the next tokens, or its end. Pumps collect
up to 64 such jobs and spend one script call per kind; while a call is under way new tokens gather,
so that a slow server gets fewer and larger entries. A job is in one call at a time. What the log
answers decides: it is never argued with (rules R1 to R4).
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tokenbus.producer.log_scripts import MAX_BATCH, Append, End, Takeover
from tokenbus.producer.replies import LogStatus
from tokenbus.worker.errors import SessionLost
from tokenbus.worker.held_job import Phase
from tokenbus.worker.hooks import nobody
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenbus.producer.replies import LogReply
    from tokenbus.producer.scripts import Scripts
    from tokenbus.worker.custody import Custody
    from tokenbus.worker.held_job import HeldJob
    from tokenbus.worker.metrics import Metrics
    from tokenbus.worker.session import Session

# Two calls keep the server busy while the other's answer is read; more only split the batches.
NUM_PUMPS = 2


class Publisher:
    """Keeps the logs of all held jobs up to date.

    `on_taken` is told when a log is ours and up to which index; `on_logged` how many new tokens the
    log confirmed, which returns the engine's credit.
    """

    def __init__(
        self, session: Session, scripts: Scripts, custody: Custody, worker: str, metrics: Metrics
    ) -> None:
        self._session = session
        self._scripts = scripts
        self._custody = custody
        self._worker = worker
        self._metrics = metrics
        self._first: deque[HeldJob] = deque()
        self._later: deque[HeldJob] = deque()
        self._queued: set[HeldJob] = set()
        self._wake = asyncio.Event()
        self._log = get_logger()
        self.on_taken: Callable[[HeldJob, int], None] = nobody
        self.on_logged: Callable[[int], None] = nobody

    def touch(self, job: HeldJob) -> None:
        """Note that a job may want something of its log; safe to repeat."""
        if job in self._queued or job.in_flight or not wants_log(job):
            return
        self._queued.add(job)
        (self._first if job.num_logged == 0 else self._later).append(job)
        self._wake.set()

    async def run(self) -> None:
        """Pump for ever."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(NUM_PUMPS):
                tasks.create_task(self._pump())

    async def _pump(self) -> None:
        while True:
            await self._wake.wait()
            await self._session.opened()
            jobs = self._next_batch()
            try:
                await self._advance(jobs)
            except SessionLost:
                continue
            except RedisError as error:
                # The server refuses the call itself: no job can be blamed, so start over cleanly.
                self._log.exception("log.call_refused")
                self._session.lose(f"log call refused: {error}")
            finally:
                for job in jobs:
                    job.in_flight = False
                    self.touch(job)
                    self._custody.settle(job)

    def _next_batch(self) -> list[HeldJob]:
        """Take jobs without a logged token alone, so that first tokens wait for nobody."""
        queue = self._first or self._later
        jobs: list[HeldJob] = []
        while queue and len(jobs) < MAX_BATCH:
            job = queue.popleft()
            self._queued.discard(job)
            if wants_log(job):
                job.in_flight = True
                jobs.append(job)
        if not self._first and not self._later:
            self._wake.clear()
        return jobs

    async def _advance(self, jobs: Sequence[HeldJob]) -> None:
        takeovers = [job for job in jobs if not job.log_known]
        if takeovers:
            await self._take_over(takeovers)
        appends = [job for job in jobs if job.log_known and job.num_logged < job.last]
        if appends:
            await self._append(appends)
        ends = [job for job in jobs if job.phase is Phase.ENDING and job.is_fully_logged]
        if ends:
            await self._end(ends)

    async def _take_over(self, jobs: list[HeldJob]) -> None:
        items = [Takeover(job.job_id, job.epoch, self._worker) for job in jobs]
        replies = await self._session.call(lambda: self._scripts.log.takeover(items), bulk=True)
        for job, reply in zip(jobs, replies, strict=True):
            if reply.status in (LogStatus.OK, LogStatus.LOG):
                job.log_known = True
                if self._follow(job, reply.last):
                    self.on_taken(job, reply.last)
            else:
                self._yield_to(job, reply)

    async def _append(self, jobs: list[HeldJob]) -> None:
        items = [_next_append(job) for job in jobs]
        replies = await self._session.call(lambda: self._scripts.log.append(items), bulk=True)
        self._metrics.log_calls += 1
        for job, item, reply in zip(jobs, items, replies, strict=True):
            if reply.status in (LogStatus.OK, LogStatus.ALREADY):
                self._metrics.log_entries += reply.status is LogStatus.OK
                self._confirm(job, item.to)
            elif reply.status is LogStatus.GAP:
                self._follow(job, reply.last)
            else:
                self._yield_to(job, reply)

    async def _end(self, jobs: list[HeldJob]) -> None:
        items = [_end_of(job) for job in jobs]
        replies = await self._session.call(lambda: self._scripts.log.end(items), bulk=True)
        for job, item, reply in zip(jobs, items, replies, strict=True):
            if reply.status in (LogStatus.OK, LogStatus.ALREADY):
                self._custody.committed(job, reply.finish or item.finish)
            elif reply.status is LogStatus.GAP:
                self._follow(job, reply.last)
            else:
                self._yield_to(job, reply)

    def _confirm(self, job: HeldJob, to: int) -> None:
        job.num_logged = to
        fresh = to - job.num_credited
        if fresh > 0:
            job.num_credited = to
            self._metrics.tokens_logged += fresh
            self.on_logged(fresh)

    def _follow(self, job: HeldJob, last: int) -> bool:
        """Go on where the log ends; False if that is past what we know, so that it is not ours."""
        job.num_logged = last
        if job.transcript is not None and last > job.last:
            self._custody.broken(job, f"the log ends at {last}, memory at {job.last}")
            return False
        if job.phase is Phase.COMMITTED:
            job.move_to(Phase.ENDING)
        return True

    def _yield_to(self, job: HeldJob, reply: LogReply) -> None:
        """Do what the log says where it does not let us go on."""
        match reply.status:
            case LogStatus.TERMINAL:
                self._custody.committed(job, reply.finish)
            case LogStatus.FENCED:
                self._custody.fenced(job, reply.epoch)
            case LogStatus.BEHIND:
                job.log_known = False
            case LogStatus.NOLOG:
                self._session.lose(f"the log of {job.job_id} is gone")
            case _:
                self._custody.broken(job, reply.finish)


def wants_log(job: HeldJob) -> bool:
    """Tell whether a job has something to write."""
    match job.phase:
        case Phase.GONE:
            return False
        case Phase.COMMITTED:
            return not job.log_known
        case Phase.RETURNING:
            return job.log_known and job.num_logged < job.last
        case Phase.ENDING:
            return True
        case _:
            return not job.log_known or job.num_logged < job.last


def _next_append(job: HeldJob) -> Append:
    if job.transcript is None:
        raise RuntimeError(f"job {job.job_id} has tokens but no transcript")
    event = job.transcript.event_after(job.num_logged, job.epoch)
    if event is None:
        raise RuntimeError(f"job {job.job_id} has nothing after {job.num_logged}")
    logprobs = json.dumps(event.logprobs, separators=(",", ":")) if event.logprobs else ""
    return Append(
        job.job_id,
        job.epoch,
        event.choice,
        event.start,
        event.to,
        event.text,
        event.ids,
        event.ends,
        logprobs,
    )


def _end_of(job: HeldJob) -> End:
    if job.transcript is None or job.finish is None:
        raise RuntimeError(f"job {job.job_id} ends without a decision")
    result = replace(
        job.transcript.result(job.epoch, job.finish), prompt_logprobs=job.prompt_logprobs
    )
    return End(job.job_id, job.epoch, job.last, job.finish.dump(), result.dump())
