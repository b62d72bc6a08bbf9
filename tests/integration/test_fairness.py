"""Shares between tenants, on the real scripts: waits are counted in seats that become free."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from workers.stubs import WIDE, StubWorker, a_job, first_step, owned_end

if TYPE_CHECKING:
    from tokenbus.producer.contract.new_job import NewJob
    from tokenbus.producer.scripts import Scripts

NUM_SEATS = 8
EVERY = 4
NUM_ROUNDS = 200


@dataclass(slots=True)
class Bus:
    """A worker that is always full: each time a seat becomes free it pulls one job."""

    scripts: Scripts
    worker: StubWorker
    seats: list[str] = field(default_factory=list)
    pulled: list[tuple[str, str]] = field(default_factory=list)

    async def step(self) -> str | None:
        """Let the longest ride end and pull one job; return its id."""
        if len(self.seats) == NUM_SEATS:
            await finish(self.scripts, self.seats.pop(0))
        jobs = (await self.worker.pull(max_jobs=1)).jobs
        for job in jobs:
            self.seats.append(job.job_id)
            self.pulled.append((job.job_id, job.tenant))
        return jobs[0].job_id if jobs else None


async def finish(scripts: Scripts, job_id: str, tokens: int = 48) -> None:
    """Complete a held job that took `tokens` of service."""
    end = owned_end(job_id, 1, 0)
    await first_step(scripts, job_id, end.finish, tokens)


async def _bus(scripts: Scripts) -> Bus:
    worker = StubWorker(scripts)
    await worker.reconcile()
    return Bus(scripts, worker)


async def _submit(scripts: Scripts, jobs: list[NewJob]) -> None:
    for first in range(0, len(jobs), 256):
        await scripts.queue.submit_many(jobs[first : first + 256], WIDE)


async def _drain(scripts: Scripts, bus: Bus) -> None:
    """Let everybody get off."""
    while await bus.step():
        pass
    while bus.seats:
        await finish(scripts, bus.seats.pop())


async def _waits(scripts: Scripts, bus: Bus, fill: bool) -> list[int]:
    """Count the seats that became free until each job of the steady tenant got one.

    With `fill` somebody else's job takes every seat that it leaves, and nothing waits.
    """
    submitted: dict[str, int] = {}
    waits: list[int] = []
    for number in range(NUM_ROUNDS):
        if number % EVERY == 0:
            job = a_job(tenant="steady")
            submitted[job.job_id] = number
            await _submit(scripts, [job])
        elif fill:
            await _submit(scripts, [a_job(tenant="other")])
        taken = await bus.step()
        if taken in submitted:
            waits.append(number - submitted.pop(taken) + 1)
    assert len(submitted) <= 1
    return sorted(waits)


def _p95(waits: list[int]) -> int:
    return waits[int(0.95 * len(waits))]


@pytest.mark.parametrize(
    ("history", "num_flood"),
    [
        ("none", 10_000),
        ("much_service", 2000),
        pytest.param("silence", 2000, marks=pytest.mark.slow),
    ],
)
async def test_flood_does_not_double_the_wait_of_a_steady_tenant(
    scripts: Scripts, history: str, num_flood: int
) -> None:
    """Thousands of jobs of another tenant double the p95 wait of the steady one in no case.

    Also if the flooder is new while the steady tenant has 10^8 tokens of service, and if the steady
    tenant returns after the flooder had the bus for itself for long.
    """
    bus = await _bus(scripts)
    control = _p95(await _waits(scripts, bus, fill=True))
    if history == "much_service":
        await _drain(scripts, bus)
        await _submit(scripts, [a_job("rich", tenant="steady")])
        await bus.step()
        await finish(scripts, bus.seats.pop(), 10**8)
    await _submit(scripts, [a_job(tenant="flood") for _ in range(num_flood)])
    if history == "silence":
        for _ in range(500):
            await bus.step()
    assert _p95(await _waits(scripts, bus, fill=False)) < 2 * control


async def test_equal_tenants_get_equal_shares(scripts: Scripts) -> None:
    """Five tenants with jobs of very different sizes: their tokens differ by under 5 %."""
    rng = random.Random(7)
    tenants = [f"t{number}" for number in range(5)]
    sizes: dict[str, int] = {}
    jobs = []
    for tenant in tenants:
        for _ in range(600):
            scale = 1 + tenants.index(tenant)
            job = a_job(
                tenant=tenant, prompt_tokens=16 * scale, output_tokens=rng.randint(8, 64) * scale
            )
            sizes[job.job_id] = job.prompt_tokens + job.output_tokens
            jobs.append(job)
    await _submit(scripts, jobs)
    bus = await _bus(scripts)
    served = dict.fromkeys(tenants, 0)
    for _ in range(900):
        if len(bus.seats) == NUM_SEATS:
            done = bus.seats.pop(0)
            await finish(scripts, done, sizes[done])
        await bus.step()
        job_id, tenant = bus.pulled[-1]
        served[tenant] += sizes[job_id]
    assert max(served.values()) < 1.05 * min(served.values()), served
