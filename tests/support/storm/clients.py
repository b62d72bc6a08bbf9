"""Those who submit and cancel under a random schedule; some die in the middle of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from storm.actor import Actor
from storm.audit import Violation
from storm.network import CallLost
from storm.worker import IN_ONE_TURN
from workers.stubs import WIDE, a_job

from tokenbus.producer.scripts import Scripts
from tokenbus.producer.scripts.completion import JobCompletion
from tokenbus.producer.scripts.replies import Submitted

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine
    from typing import Any

    from storm.network import Clock, Network

    from tokenbus.producer.contract.new_job import NewJob

MAX_JOBS = 4
# How long a client submits again without an answer: `retry_for_s` of a real one.
GIVES_UP_S = 60.0


@dataclass
class StormClients:
    """All clients of one schedule.

    `on_accepted` is told each new job once, `on_cancelled` each answer to a cancel.
    """

    network: Network
    chance: random.Random
    clock: Clock
    pool: str
    skips: frozenset[str]
    on_accepted: Callable[[str], None]
    on_cancelled: Callable[[str, str], None]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    actors: list[Actor] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    tenants: dict[str, str] = field(default_factory=dict)
    _num_submitted: int = 0

    def submit(self) -> None:
        """Let a client appear with a job, and sometimes a second one with the same key."""
        if self._num_submitted >= MAX_JOBS:
            return
        self._num_submitted += 1
        number = self._num_submitted
        fields: dict[str, Any] = {"tenant": self.chance.choice("ab")}
        if self.chance.random() < 0.2:
            fields["deadline_ms"] = self.chance.randrange(100, 9000)
        if self.chance.random() < 0.2:
            fields["not_before_ms"] = self.chance.randrange(100, 4000)
        job = a_job(f"j{number}", idempotency=f"i{number}", **fields)
        self._start(f"client {number}", self._deliver(job))
        if self.chance.random() < 0.3:
            twin = a_job(f"k{number}", idempotency=f"i{number}", **fields)
            self._start(f"client {number}'", self._deliver(twin))

    def cancel(self) -> None:
        """Let somebody cancel a job that was accepted."""
        if self.accepted:
            job_id = self.chance.choice(self.accepted)
            self._start(f"canceller of {job_id}", self._withdraw(job_id))

    @property
    def are_done(self) -> bool:
        """Tell whether all have gone. Raises: what one of them died of."""
        for task in self.tasks:
            if task.done():
                task.result()
        return all(task.done() for task in self.tasks)

    def _start(self, name: str, life: Coroutine[None, None, None]) -> None:
        self.network.note(f"{name} appears")
        self.tasks.append(asyncio.create_task(life))

    async def _deliver(self, job: NewJob) -> None:
        """Submit until the server has answered, or it is too late to.

        Who came again once the job has ended and is forgotten would submit another one.
        """
        scripts = self._scripts(f"client of {job.job_id}")
        self.tenants[job.job_id] = job.tenant
        gives_up_at_s = self.clock() + GIVES_UP_S
        while True:
            try:
                reply = await scripts.queue.submit(job, WIDE)
                break
            except CallLost:
                if self.clock() > gives_up_at_s:
                    return
        if not isinstance(reply, Submitted):
            raise Violation(f"{job.job_id} was refused: {reply}")
        job_id = reply.place.job_id
        if job_id not in self.accepted:
            self.accepted.append(job_id)
            self.on_accepted(job_id)

    async def _withdraw(self, job_id: str) -> None:
        """Cancel a job; some clients die of the first call that is lost."""
        stale_clock = (lambda: 0.0) if "stale answers" in self.skips else self.clock
        scripts = self._scripts(f"canceller of {job_id}")
        scripts.completion.is_one_server = IN_ONE_TURN not in self.skips
        completion = JobCompletion(scripts, clock=stale_clock)
        while True:
            try:
                status = await completion.cancel(job_id)
            except CallLost:
                if self.chance.random() < 0.3:
                    return
                continue
            self.on_cancelled(job_id, status)
            return

    def _scripts(self, name: str) -> Scripts:
        actor = Actor(name, self.network)
        self.actors.append(actor)
        redis: Any = actor
        return Scripts(redis, self.pool)
