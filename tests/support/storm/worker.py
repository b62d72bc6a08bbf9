"""A worker that follows the protocol and knows only what it was told.

Three tasks share its memory, as in a real one: work, lease and housekeeping. A call that is lost
closes the session; all calls under way are given up, and nothing is called before a reconcile.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from redis.exceptions import ResponseError
from storm.actor import Actor
from storm.network import CallLost
from workers.stubs import owned_end, tokens

from tokenbus.producer.scripts import Begin, Budget, Scripts, Takeover
from tokenbus.producer.scripts.completing import Completed
from tokenbus.producer.scripts.completion import JobCompletion
from tokenbus.producer.scripts.evidence import Crash, Crowd, Evidence
from tokenbus.producer.scripts.replies import LogStatus, PullStatus, RequeueStatus
from tokenbus.worker.session import STALE_LEASES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from storm.network import Clock, Network

    from tokenbus.producer.scripts.lease import Renewal
    from tokenbus.producer.scripts.replies import HeldEntry, LogReply

    T = TypeVar("T")

LENGTH = 5
# Each job of these schedules counts three pages; two of them fill a worker.
PAGES, PAGE_SIZE, MAX_HELD = 6, 16, 2
LEASE_S = 5.0
# What is skipped where records and logs lie on several servers: completion takes three calls.
IN_ONE_TURN = "completion in one turn"
# How often a worker lets a job that has ended wait, to complete it together with the next one.
GATHER_RATE = 0.4
# The job that no engine survives, where a schedule has one.
KILLER = "j2"


class SessionLost(Exception):
    """The session was lost before a call or under it."""


def until_ms(renewal: Renewal) -> int:
    """Return when the server takes what is written by a renewal for stale."""
    return renewal.at_ms + int(STALE_LEASES * LEASE_S * 1000)


@dataclass(eq=False, slots=True)
class Ride:
    """One job as its owner knows it; `last` is where its log ends, None when that is unknown.

    `start` names a start from nothing, empty once the log is known to hold it. `evidence` speaks
    against the job, and `crash` is why it goes back. `finish` is how its log ended.
    """

    epoch: int
    evidence: Evidence | None = None
    start: str = ""
    last: int | None = None
    entries: int = 0
    made: int = 0
    flag: str = ""
    marker: int = 0
    is_returning: bool = False
    is_leaving: bool = False
    crash: Crash | None = None
    finish: str = ""

    @property
    def is_aboard(self) -> bool:
        """Tell whether the engine computes it."""
        if self.finish:
            return False
        if self.start:
            return self.made < LENGTH
        return self.last is not None and self.last < LENGTH


@dataclass(eq=False)
class StormWorker:
    """One worker process of a schedule; `skips` names rules that it does not follow.

    Its engine dies of `KILLER` where `kills` is set, before that makes a token.
    """

    name: str
    network: Network
    chance: random.Random
    clock: Clock
    pool: str
    skips: frozenset[str] = frozenset()
    kills: bool = False
    serial: int = 0
    jobs: dict[str, Ride] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start the tasks."""
        self.actor = Actor(self.name, self.network)
        self.scripts = Scripts(self.actor, self.pool)  # type: ignore[arg-type]  # all that is used
        stale_clock = (lambda: 0.0) if "stale answers" in self.skips else self.clock
        self.completion = JobCompletion(self.scripts, clock=stale_clock)
        self.scripts.completion.is_one_server = IN_ONE_TURN not in self.skips
        self._gathers = random.Random(f"gathers of {self.name}")
        self.generation = 0
        self._num_starts = 0
        self._open = asyncio.Event()
        self._opened_at = self._renewed_at = 0.0
        self._until_ms = 0
        self._settlement = asyncio.Lock()
        for loop in (self._lease_loop, self._work_loop, self._work_loop, self._keep_loop):
            self.tasks.append(asyncio.create_task(loop()))

    def die(self) -> None:
        """Stop; what was sent may still arrive."""
        for task in self.tasks:
            task.cancel()
        self.network.abandon(self.actor)

    async def _call(self, make: Callable[[], Awaitable[T]]) -> T:
        """Run one exchange inside the session (R7). Raises: SessionLost."""
        if self._open.is_set() and self.clock() - self._renewed_at > STALE_LEASES * LEASE_S:
            self._lose()
        if not self._open.is_set():
            raise SessionLost
        generation = self.generation
        try:
            answer = await make()
        except CallLost:
            if generation == self.generation:
                self._lose()
            raise SessionLost from None
        except ResponseError as error:
            if not str(error).startswith("UNLEASED"):
                raise
            if generation == self.generation:
                self._lose()
            raise SessionLost from None
        if generation != self.generation:
            raise SessionLost
        return answer

    def _lose(self) -> None:
        self.generation += 1
        self._open.clear()
        self.network.abandon(self.actor)

    async def _lease_loop(self) -> None:
        while True:
            await asyncio.sleep(0)
            try:
                await (self._renew() if self._open.is_set() else self._reconcile())
            except (SessionLost, CallLost):
                continue

    async def _reconcile(self) -> None:
        async with self._settlement:
            self.serial += 1
            renewal = await self.scripts.lease.reconcile(
                self.name, self.serial, int(LEASE_S * 1000), PAGES, PAGE_SIZE
            )
            for ride in self.jobs.values():
                ride.last, ride.finish = None, ""
            self._opened_at = self._renewed_at = self.clock()
            self._until_ms = until_ms(renewal)
            self._open.set()
            await self._compare(renewal.held)

    async def _renew(self) -> None:
        async with self._settlement:
            renewal = await self._call(
                lambda: self.scripts.lease.renew(self.name, int(LEASE_S * 1000), PAGES, PAGE_SIZE)
            )
            self._renewed_at, self._until_ms = self.clock(), until_ms(renewal)
            await self._compare(renewal.held)

    async def _compare(self, held: list[HeldEntry]) -> None:
        """Believe the server: drop what it does not list, give back what we do not know (R6)."""
        epochs = {job.job_id: job.epoch for job in held}
        for job_id, ride in list(self.jobs.items()):
            if epochs.get(job_id) != ride.epoch and not ride.is_leaving:
                del self.jobs[job_id]
        for job in held:
            if job.job_id in self.jobs:
                self.jobs[job.job_id].flag = job.flag
            elif "unknown jobs" not in self.skips:
                await self._call(partial(self._return_unknown, job))

    async def _return_unknown(self, job: HeldEntry) -> None:
        await self.scripts.lease.requeue(self.name, job.job_id, job.epoch)

    async def _work_loop(self) -> None:
        while True:
            await asyncio.sleep(0)
            try:
                await self._open.wait()
                await self._step()
            except SessionLost:
                continue

    async def _step(self) -> None:
        room = MAX_HELD - len(self.jobs)
        idle = [job for job, ride in self.jobs.items() if not ride.is_leaving]
        if not idle or (room > 0 and self.chance.random() < 0.3):
            await self._pull()
            return
        job_id = self.chance.choice(idle)
        ride = self.jobs[job_id]
        ride.is_leaving = True
        try:
            await self._advance(job_id, ride)
        finally:
            ride.is_leaving = False

    def lose_engine(self) -> None:
        """Let the engine die; what was on board goes back with the blame."""
        aboard = [ride for ride in self.jobs.values() if ride.is_aboard and not ride.is_returning]
        suspects = [ride for ride in aboard if ride.evidence and ride.evidence.ride] or aboard
        for ride in aboard:
            ride.is_returning = True
            ride.crash = Crash(
                cause="engine",
                place=ride.last or 0,
                num_suspected=len(suspects),
                num_beside=len(aboard) - len(suspects),
                is_beside=ride not in suspects,
            )

    def _crowd(self) -> Crowd | None:
        """Tell which suspects are here; None where nothing may be pulled."""
        found = [ride.evidence for ride in self.jobs.values() if ride.evidence is not None]
        is_told = all(ride.crash is None for ride in self.jobs.values())
        if not is_told or any(evidence.is_alone for evidence in found):
            return None
        rides = [evidence.ride for evidence in found if evidence.ride]
        return Crowd(len(rides), min(rides, default=0), len(found))

    async def _pull(self) -> None:
        async with self._settlement:
            room, crowd = MAX_HELD - len(self.jobs), self._crowd()
            if room <= 0 or crowd is None:
                return
            budget = Budget(3 * room, PAGE_SIZE, PAGES, room, take_head_of_line=False, crowd=crowd)
            reply = await self._call(
                lambda: self.scripts.lease.pull(self.name, self.serial, budget)
            )
            for job in reply.jobs:
                start = self._next_start() if job.epoch == 1 else ""
                self.jobs[job.job_id] = Ride(job.epoch, job.evidence, start, marker=job.epoch)
        if reply.status is PullStatus.RECONCILE:
            self._lose()

    async def _advance(self, job_id: str, ride: Ride) -> None:
        """Do the next thing for a job: start it, log, end, or give it back."""
        if ride.finish:
            await self._complete(job_id, ride)
        elif ride.is_returning:
            await self._give_back(job_id, ride)
        elif ride.last is None:
            await self._start(job_id, ride)
        elif ride.flag or ride.last >= LENGTH:
            await self._end(job_id, ride, ride.last)
        elif self.chance.random() < 0.08:
            await self._give_back(job_id, ride)
        elif self.kills and job_id == KILLER:
            self.lose_engine()
        else:
            await self._append(job_id, ride, ride.last)

    def _next_start(self) -> str:
        self._num_starts += 1
        return str(self._num_starts)

    async def _start(self, job_id: str, ride: Ride) -> None:
        """Take a log over; what starts from nothing creates it with its first tokens, mostly."""
        if ride.start and (ride.made or self.chance.random() < 0.8):
            if self.kills and job_id == KILLER:
                self.lose_engine()
            else:
                await self._begin(job_id, ride)
            return
        takeover = Takeover(job_id, ride.epoch, self.name)
        [reply] = await self._call(lambda: self.scripts.log.takeover([takeover]))
        await self._obey(job_id, ride, reply)

    async def _begin(self, job_id: str, ride: Ride) -> None:
        """Log the first token, or the whole answer where all of it is there."""
        if not ride.flag:
            ride.made = max(ride.made, min(LENGTH, self.chance.randint(1, 2 * LENGTH)))
        is_over = bool(ride.flag) or ride.made >= LENGTH
        to = ride.made if is_over else 1
        cut = self.chance.randint(1, to) if to else 0
        parts = [(1, cut), (cut + 1, to)] if cut < to else [(1, to)] if to else []
        written = [tokens(job_id, ride.epoch, *part) for part in parts]
        end = owned_end(job_id, ride.epoch, to, "cancelled" if ride.flag else "stop")
        item = Begin(job_id, ride.epoch, ride.start, written, end if is_over else None)
        [reply] = await self._call(lambda: self._begun(item))
        if reply.status is LogStatus.OK and is_over:
            await self._ended(job_id, ride, end.finish)
        elif reply.status is LogStatus.LOG and reply.last:
            await self._give_back(job_id, ride)
        else:
            await self._obey(job_id, ride, reply)

    async def _begun(self, item: Begin) -> list[LogReply]:
        until_ms = 0 if "late begins" in self.skips else self._until_ms
        return await self.scripts.log.begin([item], self.name, until_ms)

    async def _append(self, job_id: str, ride: Ride, last: int) -> None:
        ride.made = max(ride.made, min(LENGTH, last + self.chance.randint(1, 3)))
        item = replace(tokens(job_id, ride.epoch, last + 1, ride.made), entries=ride.entries)
        [reply] = await self._call(lambda: self.scripts.log.append([item]))
        if reply.status in (LogStatus.OK, LogStatus.ALREADY):
            ride.last, ride.entries = item.to, reply.entries
        else:
            await self._obey(job_id, ride, reply)

    async def _end(self, job_id: str, ride: Ride, last: int) -> None:
        item = owned_end(job_id, ride.epoch, last, "cancelled" if ride.flag else "stop")
        [reply] = await self._call(lambda: self.scripts.log.end([item]))
        if reply.status in (LogStatus.OK, LogStatus.ALREADY):
            await self._ended(job_id, ride, reply.finish or item.finish)
        else:
            await self._obey(job_id, ride, reply)

    async def _ended(self, job_id: str, ride: Ride, finish: str) -> None:
        """Complete a job whose log has ended, or wait for another to complete it with."""
        ride.finish = finish
        if self._gathers.random() >= GATHER_RATE:
            await self._complete(job_id, ride)

    async def _complete(self, job_id: str, ride: Ride) -> None:
        """Complete a job and all others that have ended and wait."""
        batch = {job_id: ride} | {
            job: other for job, other in self.jobs.items() if other.finish and not other.is_leaving
        }
        for other in batch.values():
            other.is_leaving = True
        try:
            whys = await self._call(
                lambda: self.completion.complete_many(
                    [Completed.of(job, other.finish) for job, other in batch.items()]
                )
            )
        finally:
            for other in batch.values():
                other.is_leaving = False
        assert not any(whys), whys
        for job in batch:
            self.jobs.pop(job, None)

    async def _obey(self, job_id: str, ride: Ride, reply: LogReply) -> None:
        """Do what the log says; it is never argued with (R1 to R4)."""
        match reply.status:
            case LogStatus.OK | LogStatus.LOG | LogStatus.ALREADY | LogStatus.GAP:
                ride.last, ride.entries, ride.start = reply.last, reply.entries, ""
                ride.made = max(ride.made, reply.last)
            case LogStatus.TERMINAL:
                await self._ended(job_id, ride, reply.finish)
            case LogStatus.FENCED:
                ride.marker = max(ride.marker, reply.epoch)
                if "own entry when fenced" in self.skips:
                    self.jobs.pop(job_id, None)
                else:
                    await self._give_back(job_id, ride)
            case LogStatus.BEHIND:
                ride.last = None
            case LogStatus.NOLOG:
                self._lose()
            case _:
                raise AssertionError(f"{job_id}: {reply}")

    async def _give_back(self, job_id: str, ride: Ride) -> None:
        ride.is_returning = True
        status = await self._call(
            lambda: self.scripts.lease.requeue(
                self.name,
                job_id,
                ride.epoch,
                marker_epoch=ride.marker,
                num_logged=ride.last or 0,
                crash=ride.crash,
            )
        )
        self.jobs.pop(job_id, None)
        if status is RequeueStatus.ENDING:
            await self._call(lambda: self.completion.cancel(job_id))

    async def _keep_loop(self) -> None:
        """Tick, and reap when leases that a restart dropped have had time to be renewed."""
        while True:
            await asyncio.sleep(0)
            try:
                await self._open.wait()
                await self._call(self.completion.tick)
                if self.clock() - self._opened_at > 2 * LEASE_S:
                    await self._reap()
            except SessionLost:
                continue

    async def _reap(self) -> None:
        asked_at = self.clock()
        for orphan in await self._call(self.scripts.lease.scan):
            status = await self._call(partial(self.completion.reap, self.name, orphan, asked_at))
            if status is RequeueStatus.ENDING:
                await self._call(partial(self.completion.cancel, orphan.job_id))
