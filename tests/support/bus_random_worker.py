"""Workers, clients and reapers that act at random over a faulty network.

Workers follow the protocol one step at a time and know only what they were told. The network loses
requests, loses replies, or delivers a request long after its sender gave up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bus_stubs import owned_end, tokens

from tokenbus.producer.chains import Chains
from tokenbus.producer.replies import LogStatus, PullStatus
from tokenbus.producer.scripts import Budget, Scripts, Takeover

if TYPE_CHECKING:
    import random

    from redis.asyncio import Redis


LAST = 6


class CallLost(ConnectionError):
    """What a caller sees of a call whose request or reply went missing."""


class FaultyRedis:
    """A client whose calls go wrong at the rate of its network."""

    def __init__(self, redis: Redis, chance: random.Random) -> None:
        self._redis: Any = redis
        self._chance = chance
        self.fault_rate = 0.15
        self._late: list[tuple[Any, ...]] = []

    async def execute_command(self, *args: Any) -> Any:
        """Run a command, or lose its request, its reply, or deliver it later."""
        if self._chance.random() >= self.fault_rate:
            return await self._redis.execute_command(*args)
        fate = self._chance.randrange(3)
        if fate == 1:
            await self._redis.execute_command(*args)
        if fate == 2:
            self._late.append(args)
        raise CallLost(f"{args[0]} was lost")

    def pipeline(self, **_: Any) -> Any:
        """Refuse: no single submit uses a pipeline."""
        raise NotImplementedError

    async def deliver_late(self, share: float) -> None:
        """Let late requests land, in any order."""
        self._chance.shuffle(self._late)
        for _ in range(round(len(self._late) * share)):
            await self._redis.execute_command(*self._late.pop())


@dataclass
class RandomWorker:
    """A worker that follows the protocol, knows only what it was told, and may die or sleep."""

    scripts: Scripts
    name: str
    serial: int = 0
    is_open: bool = False
    jobs: dict[str, list[int]] = field(default_factory=dict)
    flagged: set[str] = field(default_factory=set)

    @property
    def chains(self) -> Chains:
        """Return the chains of this worker."""
        return Chains(self.scripts)

    async def act(self, chance: random.Random) -> None:
        """Take one step; a lost call closes the session until the next reconcile."""
        try:
            if not self.is_open:
                await self._reconcile()
                return
            step = chance.choice((self._pull, self._work, self._work, self._work, self._renew))
            await step(chance)
        except CallLost:
            self.is_open = False

    async def _reconcile(self) -> None:
        self.serial += 1
        held = await self.scripts.lease.reconcile(self.name, self.serial, 3_600_000, 100, 16)
        known = {job.job_id: job.epoch for job in held}
        self.jobs = {job: at for job, at in self.jobs.items() if known.get(job) == at[0]}
        for job in held:
            if job.job_id not in self.jobs:
                await self.scripts.lease.requeue(self.name, job.job_id, job.epoch)
            elif not await self._start(job.job_id):
                continue
        self.flagged = {job.job_id for job in held if job.flag}
        self.is_open = True

    async def _renew(self, _: random.Random) -> None:
        held = await self.scripts.lease.renew(self.name, 3_600_000, 100, 16)
        known = {job.job_id: job.epoch for job in held}
        self.jobs = {job: at for job, at in self.jobs.items() if known.get(job) == at[0]}
        for job in held:
            if job.job_id not in self.jobs:
                await self.scripts.lease.requeue(self.name, job.job_id, job.epoch)
        self.flagged = {job.job_id for job in held if job.flag}

    async def _pull(self, chance: random.Random) -> None:
        room = 2 - len(self.jobs)
        if room <= 0:
            return
        budget = Budget(100, 16, 100, chance.randint(1, room))
        reply = await self.scripts.lease.pull(self.name, self.serial, budget)
        self.is_open = reply.status is not PullStatus.RECONCILE
        for job in reply.jobs:
            self.jobs[job.job_id] = [job.epoch, -1]
        for job in reply.jobs:
            await self._start(job.job_id)

    async def _start(self, job_id: str) -> bool:
        epoch = self.jobs[job_id][0]
        [reply] = await self.scripts.log.takeover([Takeover(job_id, epoch, self.name)])
        if reply.status in (LogStatus.OK, LogStatus.LOG):
            self.jobs[job_id][1] = reply.last
            return True
        del self.jobs[job_id]
        if reply.status is LogStatus.TERMINAL:
            await self.chains.complete(job_id, reply.finish)
        else:
            await self._give_back(job_id, epoch, reply.epoch)
        return False

    async def _give_back(self, job_id: str, epoch: int, marker_epoch: int = 0) -> None:
        await self.scripts.lease.requeue(self.name, job_id, epoch, marker_epoch=marker_epoch)

    async def _work(self, chance: random.Random) -> None:
        if not self.jobs:
            return
        job_id = chance.choice(sorted(self.jobs))
        epoch, last = self.jobs[job_id]
        if last < 0:
            await self._start(job_id)
        elif job_id in self.flagged or last >= LAST:
            await self._end(job_id, epoch, last)
        elif chance.random() < 0.1:
            del self.jobs[job_id]
            await self._give_back(job_id, epoch)
        else:
            await self._append(job_id, epoch, last, min(LAST, last + chance.randint(1, 3)))

    async def _append(self, job_id: str, epoch: int, last: int, to: int) -> None:
        [reply] = await self.scripts.log.append([tokens(job_id, epoch, last + 1, to)])
        if reply.status in (LogStatus.OK, LogStatus.ALREADY):
            self.jobs[job_id][1] = max(to, reply.last)
        else:
            await self._settle(job_id, epoch, reply.status, reply.last, reply.epoch)

    async def _end(self, job_id: str, epoch: int, last: int) -> None:
        reason = "cancelled" if job_id in self.flagged else "stop"
        [reply] = await self.scripts.log.end([owned_end(job_id, epoch, last, reason)])
        if reply.status in (LogStatus.OK, LogStatus.ALREADY):
            del self.jobs[job_id]
            await self.chains.complete(job_id, reply.finish)
        else:
            await self._settle(job_id, epoch, reply.status, reply.last, reply.epoch)

    async def _settle(
        self, job_id: str, epoch: int, status: LogStatus, last: int, log_epoch: int
    ) -> None:
        if status is LogStatus.GAP:
            self.jobs[job_id][1] = last
        elif status is LogStatus.BEHIND:
            await self._start(job_id)
        elif status is LogStatus.FENCED:
            del self.jobs[job_id]
            await self._give_back(job_id, epoch, log_epoch)
        else:
            self.is_open = False
