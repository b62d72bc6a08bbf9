"""A pool under random schedules: who acts next, what goes wrong, and how it all heals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bus_random_worker import CallLost, FaultyRedis, RandomWorker
from bus_stubs import WIDE, a_job, raw

from tokenbus.producer.chains import Chains

if TYPE_CHECKING:
    import random

    from tokenbus.producer.replies import Orphan
    from tokenbus.producer.scripts import Scripts

NUM_STEPS = 150
MAX_JOBS = 5


@dataclass
class World:
    """Everything that acts on one pool."""

    scripts: Scripts
    truth: Scripts
    network: FaultyRedis
    chance: random.Random
    workers: list[RandomWorker] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    num_born: int = 0

    def new_worker(self) -> RandomWorker:
        """Start a worker under a name of its own."""
        self.num_born += 1
        worker = RandomWorker(self.scripts, f"w{self.num_born}")
        self.workers.append(worker)
        return worker

    async def lose_lease(self, worker: RandomWorker) -> None:
        """Let a worker look dead to the others."""
        await raw(self.truth).delete(self.truth.keys.of("alive", worker.name))

    async def lose_all_leases(self) -> None:
        """Let the leases of all workers that ever were run out, late renewals included."""
        keys = [self.truth.keys.of("alive", f"w{number}") for number in range(self.num_born + 1)]
        await raw(self.truth).delete(*keys)

    async def age(self) -> None:
        """Let what lies in `ending` look forsaken."""
        ending = self.truth.keys.of("ending")
        for job in await raw(self.truth).zrange(ending, 0, -1):
            await raw(self.truth).zadd(ending, {job: 1})

    async def step(self) -> None:
        """Let somebody do something."""
        fate = self.chance.random()
        worker = self.chance.choice(self.workers)
        try:
            if fate < 0.08 and len(self.accepted) < MAX_JOBS:
                await self.submit()
            elif fate < 0.12:
                await Chains(self.scripts).cancel(self.chance.choice(self.accepted or ["none"]))
            elif fate < 0.18:
                await self.reap()
            elif fate < 0.24:
                await self.age()
                await Chains(self.scripts).tick()
            elif fate < 0.28:
                await self.lose_lease(worker)
            elif fate < 0.30:
                await self.lose_lease(worker)
                self.workers.remove(worker)
                self.new_worker()
            elif fate < 0.34:
                await self.network.deliver_late(self.chance.random())
            else:
                await worker.act(self.chance)
        except CallLost:
            return

    async def submit(self) -> None:
        """Submit a job until the server has answered."""
        job = a_job(f"j{len(self.accepted)}", tenant=self.chance.choice("ab"))
        self.accepted.append(job.job_id)
        while True:
            try:
                await self.scripts.queue.submit(job, WIDE)
            except CallLost:
                continue
            return

    async def reap(self) -> None:
        """Reap whatever has no lease."""
        chains = Chains(self.scripts)
        orphans: list[Orphan] = await self.scripts.lease.scan()
        for orphan in orphans:
            await chains.reap("reaper", orphan, chains._clock())

    async def settle(self) -> None:
        """Heal the network, end all workers, and let a fresh one finish everything."""
        await self.network.deliver_late(1.0)
        self.network.fault_rate = 0.0
        await self.lose_all_leases()
        self.workers = []
        for _ in range(8):
            worker = self.new_worker()
            for _ in range(60):
                await self.age()
                await Chains(self.scripts).tick()
                await self.reap()
                await worker.act(self.chance)
            await self.lose_lease(worker)
        await self.reap()
        await self.reap()
        await self.age()
        await Chains(self.scripts).tick()
