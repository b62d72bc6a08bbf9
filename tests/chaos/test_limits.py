"""No room: pages, the server's memory, readers that are slow or gone, clients that die."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from rides.ride import Ride
from rides.scale import PATIENT, both_ways
from servers.fixtures import server_binary
from workers.forkserver import forked_worker
from workers.null_workers import Story, command

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import QueueFull
from tokenbus.producer.server.embedded import start_private
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator

    from rides.ride import Cargo


@pytest.fixture
async def small_ride(
    server_kind: str, pool: str, cargo: Cargo, rng: random.Random
) -> AsyncIterator[Ride]:
    """Give a ride on a server of its own, whose memory may be bounded."""
    server = await asyncio.to_thread(start_private, server_binary(server_kind))
    async with await AsyncClient.connect(server.url, pool=pool, settings=PATIENT) as client:
        yield Ride(client, cargo, rng, server.url)
    await asyncio.to_thread(server.close)


async def test_full_page_pool(ride: Ride, num_jobs: int) -> None:
    """With pages for a few jobs at a time all others wait their turn, also across a death."""
    settings = ride.settings(num_pages=24, page_size=16)
    async with forked_worker(**settings) as worker, forked_worker(**settings):
        await ride.board(num_jobs, 60)
        await ride.until_seen(5)
        worker.kill()
        await ride.arrive()
        await ride.check_nothing_left()


async def test_server_at_maxmemory(small_ride: Ride, num_jobs: int) -> None:
    """A server without memory refuses new jobs with a time to come back; accepted ones end."""
    ride = small_ride
    scripts = ride.client.scripts
    async with forked_worker(**ride.settings()):
        await ride.board(num_jobs, 80)
        await ride.until_seen(5)
        await command(scripts, "CONFIG", "SET", "maxmemory", "1mb")
        with pytest.raises(QueueFull) as refusal:
            await ride.client.submit("no room")
        assert refusal.value.retry_after_s > 0
        await ride.arrive()
        await command(scripts, "CONFIG", "SET", "maxmemory", "0")
        await ride.board(1)
        await ride.arrive()
        await ride.check_nothing_left()


@both_ways
async def test_slow_reader_reads_everything(ride: Ride, num_jobs: int, pool: str) -> None:
    """A reader that holds back three tokens at most is fed from the log: nothing is missing."""
    settings = ClientSettings(max_buffered_tokens=3, silence_s=0.2)
    async with (
        forked_worker(**ride.settings()),
        await AsyncClient.connect(ride.redis_url, pool=pool, settings=settings) as slow_client,
    ):
        await ride.board(num_jobs, 60)
        job = ride.addresses[0]
        story = Story(job.job_id)
        async for event in slow_client.stream(job.job_id, tenant=job.tenant):
            story.see(event)
            if story.last < 20:
                await ride.until_more(5 * num_jobs)
        stories = await ride.arrive()
        assert story.ids == stories[job.job_id].ids
        await ride.check_nothing_left()


async def test_vanished_readers_cost_nothing(ride: Ride, num_jobs: int) -> None:
    """Readers go away mid-stream; one comes back with its cursor and misses nothing."""
    async with forked_worker(**ride.settings()):
        await ride.board(num_jobs, 60)
        await ride.until_seen(5, num_jobs)
        await ride.come_back(await ride.vanish())
        await ride.arrive()
        await ride.check_nothing_left()


async def test_client_dies_in_the_middle_of_a_cancel(ride: Ride, num_jobs: int) -> None:
    """Taken out of its lane by a client that died at once, each job still ends as cancelled."""
    queue = ride.client.scripts.queue
    await ride.board(num_jobs)
    for job in ride.addresses:
        assert (await queue.cancel(job.text)).status == "ending"
    async with forked_worker(**ride.settings()):
        stories = await ride.end()
        assert {story.reason for story in stories.values()} == {"cancelled"}
        await ride.check_nothing_left()


async def test_cancel_of_running_jobs_by_a_client_that_dies(ride: Ride, num_jobs: int) -> None:
    """The owner was told or finds the flag: each running job ends as cancelled, pages are free."""
    queue = ride.client.scripts.queue
    # All wait before any runs, so that none is over when its turn to be cancelled comes.
    await ride.board(num_jobs, 4000)
    async with forked_worker(**ride.settings()):
        await ride.until_seen(5, min(num_jobs, 8))
        replies = [await queue.cancel(job.text) for job in ride.addresses]
        assert "held" in {reply.status for reply in replies}
        stories = await ride.end()
        assert {story.reason for story in stories.values()} == {"cancelled"}
        await ride.check_nothing_left()
