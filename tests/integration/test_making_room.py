"""Room made by giving jobs back: for suspects under steady load, and for higher priorities."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from servers.wire_proxy import Moment, WireProxy
from workers.brake import Brake
from workers.null_workers import expected_text, follow, num_waiting, until, worker

from tokenbus.worker.pool import parking

if TYPE_CHECKING:
    from workers.null_workers import Story

    from tokenbus.producer.client.async_client import AsyncClient, Job
    from tokenbus.producer.scripts import Scripts


async def _steady_load(client: AsyncClient, stop: asyncio.Event) -> None:
    """Keep two jobs running at any time."""

    async def one_after_the_other(seed: int, length: int) -> None:
        while not stop.is_set():
            job = await client.submit("hello", seed=seed, max_tokens=length, priority=0)
            assert (await follow(client, job)).text == expected_text(seed, length)

    # Lengths that differ: in step with each other, both would end at once and leave the bus empty.
    await asyncio.gather(one_after_the_other(1, 240), one_after_the_other(2, 170))


# One kind of server: it lasts, and what is shown is what the worker makes of its own room.
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_suspect_runs_also_on_a_worker_that_is_never_empty(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """A job that saw two crashes is claimed by a busy worker, which clears its bus for it.

    It runs alone, ends, and what was handed back for it goes on unbroken.
    """
    stop = asyncio.Event()
    async with worker(pool, redis_url, null_tokens_per_s=60, suspect_wait_s=0.2) as running:
        load = asyncio.create_task(_steady_load(client, stop))
        await until(lambda: running.num_held == 2)
        # Nobody takes it before it is one.
        await client.pause()
        suspect = await client.submit("who, me?", seed=9, max_tokens=20)
        await scripts.redis.hset(scripts.keys.of("job", suspect.job_id), "attempts", "2")  # type: ignore[misc]
        await client.resume()
        story = await follow(client, suspect)
        assert story.text == expected_text(9, 20)
        stop.set()
        await load
        assert running.metrics.jobs_requeued >= 1


async def test_low_priority_is_parked_for_a_higher_one(
    client: AsyncClient, redis_url: str, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every page taken by low-priority jobs, an urgent one runs at once; they go on later."""
    # The engine waits amid their answers until one is parked.
    brake = Brake(monkeypatch, num_ahead=4)
    brake.set(40)
    async with worker(
        pool, redis_url, num_pages=25, page_size=16, null_tokens_per_s=60, reserve_fraction=0
    ) as running:
        slow = [
            await client.submit("x" * 16, seed=s, max_tokens=150, priority=2, tenant=f"t{s}")
            for s in range(2)
        ]
        order: list[str] = []

        async def read(job: Job) -> Story:
            story = await follow(client, job)
            order.append(job.job_id)
            return story

        readers = [asyncio.create_task(read(job)) for job in slow]
        await until(lambda: running.num_held == 2 and num_waiting(running) == 0)
        urgent = await client.submit("y" * 16, seed=5, max_tokens=30, priority=0)
        await until(lambda: running.metrics.jobs_parked > 0)
        brake.resume()
        story = await read(urgent)
        assert story.text == expected_text(5, 30)
        for seed, reader in enumerate(readers):
            assert (await reader).text == expected_text(seed, 150)
        assert order[0] == urgent.job_id
        assert running.metrics.preemptions == 0


# One kind of server: it lasts, and what is shown is what the worker makes of its own room.
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_pages_of_a_job_whose_hand_back_is_on_its_way_are_nobodys(
    client: AsyncClient, redis_url: str, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine has freed them, but until the queue has answered nothing is started in them (R8).

    The queue still counts the job as held here: another in its place would be twice the budget.
    """
    # The engine waits amid the answer until it is given back.
    brake = Brake(monkeypatch, num_ahead=4)
    brake.set(100)
    async with (
        WireProxy(Path(redis_url.removeprefix("unix://"))) as wire,
        worker(
            pool, wire.url, num_pages=13, page_size=16, null_tokens_per_s=60, reserve_fraction=0,
            renew_interval_s=0.2,
        ) as running,
    ):  # fmt: skip
        slow = await client.submit("x" * 16, seed=1, max_tokens=170, priority=2)
        has_pages = asyncio.Event()
        reader = asyncio.create_task(
            follow(client, slow, lambda story: has_pages.set() if story.last > 90 else None)
        )
        await has_pages.wait()
        trap = wire.trap("requeue", Moment.HELD, lambda: None)
        urgent = [
            await client.submit("y" * 16, seed=seed, max_tokens=100, priority=0)
            for seed in range(2, 4)
        ]
        await trap.closed()
        brake.resume()
        await until(lambda: running.stats is not None and running.stats.num_running == 0)
        # As when the worker waits no longer for what it gave back, and looks for room again.
        monkeypatch.setattr(parking, "FREEING_S", 0.0)
        assert running._parts is not None
        running._parts.engine_reports._head_of_line.pages_changed()
        assert num_waiting(running) == 1
        assert running.num_held == 2
        trap.open()
        for seed, job in enumerate(urgent, start=2):
            assert (await follow(client, job)).text == expected_text(seed, 100)
        assert (await reader).text == expected_text(1, 170)
