"""Jobs that kill engines, and deaths that are no job's fault: who is blamed, and what it costs."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from math import log2
from typing import TYPE_CHECKING, Any

import pytest
from rides.ride import NullCargo, Ride
from rides.scale import IS_SHORT, long_row
from workers.forkserver import forked_worker
from workers.null_workers import Story, command

if TYPE_CHECKING:
    import random

    from workers.forkserver import ForkedWorker

    from tokenbus.producer.client.async_client import AsyncClient

# Ids of which the prompts of killers are made; nobody else's has them.
KILLER, ACCOMPLICE = 7, 8
KILLERS: dict[str, dict[str, int]] = {
    "at_its_start": {},
    "at_an_index": {"null_crash_at_index": 50},
    "after_each_start": {"null_crash_after_tokens": 50},
    "with_another": {"null_crash_with_id": ACCOMPLICE},
}
# Jobs that a killer is among, with it.
NUM_BESIDE = 16 if IS_SHORT else 64
NUM_KILLS, STORM_TOKENS = (2, 120) if IS_SHORT else (20, 320)


async def _num_deaths(client: AsyncClient) -> int:
    """Count the engines that died before the eyes of the living workers."""
    scripts, deaths = client.scripts, 0
    for name in await command(scripts, "SMEMBERS", scripts.keys.of("workers")):
        value = await command(scripts, "GET", scripts.keys.of("status", name.decode()))
        if value is not None:
            deaths += json.loads(value)["counters"]["engine_deaths"]
    return deaths


async def _follow(client: AsyncClient, job_id: str) -> Story:
    story = Story(job_id)
    async for event in client.stream(job_id):
        story.see(event)
    return story


async def _board_killers(client: AsyncClient, ids: list[int]) -> list[str]:
    return [
        (await client.submit(token_ids=[each], max_tokens=2000, priority=1)).job_id for each in ids
    ]


async def _check_guilty(client: AsyncClient, killers: list[str]) -> None:
    """Only killers are poison, and dead letters; of two that need each other one may go on.

    The pool is at rest: a dead letter is written by the completion, after readers saw the end.
    """
    stories = await asyncio.gather(*(_follow(client, job_id) for job_id in killers))
    guilty = []
    for story in stories:
        assert story.finish is not None
        if story.finish.error is not None:
            assert story.finish.error.code == "poison"
            guilty.append(story.job_id.encode())
    assert guilty or len(killers) > 1
    dead = await command(client.scripts, "XRANGE", client.scripts.keys.of("dead"), "-", "+")
    assert sorted(fields[b"job"] for _, fields in dead) == sorted(guilty)


@pytest.mark.parametrize(
    "killer",
    [pytest.param(name, marks=[] if name == "after_each_start" else long_row) for name in KILLERS],
)
@pytest.mark.parametrize("num_workers", [pytest.param(1, marks=long_row), 2])
async def test_one_killer_among_many(
    client: AsyncClient, rng: random.Random, redis_url: str, killer: str, num_workers: int
) -> None:
    """Of many jobs one kills the engines that run it: it ends as poison, the others unbroken."""
    ride = Ride(client, NullCargo(tokens_per_s=200), rng, redis_url)
    settings = ride.settings(null_crash_id=KILLER, suspect_wait_s=0.5, **KILLERS[killer])
    async with AsyncExitStack() as stack:
        for _ in range(num_workers):
            await stack.enter_async_context(forked_worker(**settings))
        await ride.board(NUM_BESIDE * 5 // 8, 300)
        ids = [KILLER, ACCOMPLICE] if killer == "with_another" else [KILLER]
        killers = await _board_killers(client, ids)
        await ride.board(NUM_BESIDE * 3 // 8 - len(ids), 300)
        await ride.arrive()
        await ride.check_nothing_left()
        await _check_guilty(client, killers)
        assert await _num_deaths(client) <= 2 * log2(NUM_BESIDE) + 4


@long_row
async def test_one_killer_among_a_thousand(
    client: AsyncClient, rng: random.Random, redis_url: str
) -> None:
    """Most of them wait: they run while those that were on board are searched."""
    ride = Ride(client, NullCargo(tokens_per_s=200), rng, redis_url)
    async with forked_worker(**ride.settings(null_crash_id=KILLER)):
        await ride.board(100, 40)
        killers = await _board_killers(client, [KILLER])
        await ride.board(899, 40)
        await ride.arrive()
        await ride.check_nothing_left()
        await _check_guilty(client, killers)
        assert await _num_deaths(client) <= 2 * log2(256) + 4


async def _replace(stack: AsyncExitStack, settings: dict[str, Any]) -> ForkedWorker:
    return await stack.enter_async_context(forked_worker(**settings))


async def test_storm_of_worker_kills_blames_nobody(ride: Ride, num_jobs: int) -> None:
    """Workers are killed and replaced all the time: each text is whole, and none is poison."""
    settings = ride.settings()
    async with AsyncExitStack() as stack:
        workers = [await _replace(stack, settings) for _ in range(2)]
        await ride.board(num_jobs, STORM_TOKENS)
        # The last kills still meet most of the jobs in the middle of their answers.
        step = num_jobs * STORM_TOKENS // (2 * NUM_KILLS)
        for number in range(NUM_KILLS):
            await ride.until_more(step)
            workers[number % 2].kill()
            workers[number % 2] = await _replace(stack, settings)
        await ride.arrive()
        await ride.check_nothing_left()
