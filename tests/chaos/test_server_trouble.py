"""The server dies, comes back, forgets its last second or hands over to a replica."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S
from rides.ride import Ride
from rides.scale import IS_SHORT, PATIENT, both_ways
from servers.fixtures import server_binary
from servers.mortal_server import MortalServer
from servers.ports import free_port
from servers.wire_proxy import WireProxy
from workers.forkserver import forked_worker
from workers.null_workers import command
from workers.stubs import until

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import JobLost

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Iterator

    from rides.ride import Cargo

    from tokenbus.producer.client.reading.event_stream import EventStream

NUM_DEATHS = 3
# Enough for a busload to last through all deaths where the machine is quiet; where it is busy,
# those that board after each death are on their way.
NUM_TOKENS = 160 if IS_SHORT else 300
MORE_TOKENS = 40


@pytest.fixture
def mortal(server_kind: str) -> Iterator[MortalServer]:
    """Give a server that may die; it keeps an append-only file, flushed every second."""
    made = MortalServer(server_binary(server_kind))
    yield made
    made.close()


@pytest.fixture
async def mortal_ride(
    mortal: MortalServer, pool: str, cargo: Cargo, rng: random.Random
) -> AsyncIterator[Ride]:
    """Give a ride on it."""
    await mortal.start()
    async with await AsyncClient.connect(mortal.url, pool=pool, settings=PATIENT) as client:
        yield Ride(client, cargo, rng, mortal.url)


@both_ways
async def test_server_killed_and_restarted_three_times(
    mortal: MortalServer, mortal_ride: Ride, num_jobs: int
) -> None:
    """SIGKILL of the server loses nothing: what it wrote it reads again, all jobs go on."""
    ride = mortal_ride
    async with forked_worker(**ride.settings()), forked_worker(**ride.settings()):
        await ride.board(num_jobs, NUM_TOKENS)
        await ride.until_seen(5)
        for _ in range(NUM_DEATHS):
            mortal.kill()
            await mortal.start()
            await ride.board(num_jobs, MORE_TOKENS)
            await ride.until_more(num_jobs)
        await ride.arrive()
        await ride.check_nothing_left()


async def test_server_loses_its_last_second_three_times(
    mortal: MortalServer, mortal_ride: Ride, num_jobs: int
) -> None:
    """A power cut takes a tail off the file: readers keep what they showed, logs are repaired.

    All jobs were accepted before the cut, so that each of them is known afterwards.
    """
    ride = mortal_ride
    ride.is_rolled_back = True
    async with forked_worker(**ride.settings()), forked_worker(**ride.settings()):
        await ride.board(num_jobs, NUM_TOKENS)
        await ride.until_seen(5)
        for _ in range(NUM_DEATHS):
            await until(lambda: _is_written(ride.client))
            mark = mortal.file_size()
            await ride.until_more(2 * num_jobs)

            async def has_grown(mark: int = mark) -> bool:
                return mortal.file_size() > mark

            # What readers saw may have been written before the mark; leases are renewed after it.
            await until(has_grown)
            mortal.kill()
            assert mortal.roll_back(mark) > 0
            await mortal.start()
            await ride.board(num_jobs, MORE_TOKENS)
            await ride.until_more(num_jobs)
        await ride.arrive()
        await ride.check_nothing_left()


async def test_job_whose_submit_was_lost_is_reported(
    mortal: MortalServer, mortal_ride: Ride
) -> None:
    """A job accepted in the second that a power cut took is unknown: its reader is told so."""
    client = mortal_ride.client
    await client.submit("the first job creates the file's entries")
    mark = mortal.file_size()
    job = await client.submit("lost")
    stream = client.stream(job)
    reading = asyncio.create_task(anext(stream))
    await until(lambda: _is_live(stream))
    mortal.kill()
    mortal.roll_back(mark)
    await mortal.start()
    with pytest.raises(JobLost):
        async with asyncio.timeout(PATIENCE_S):
            await reading


async def test_replica_that_fell_behind_is_promoted(
    server_kind: str, mortal: MortalServer, pool: str, cargo: Cargo, rng: random.Random,
    num_jobs: int,
) -> None:  # fmt: skip
    """A failover to a replica that missed the last writes costs a pause, as a power cut does."""
    async with AsyncExitStack() as stack:
        port = free_port()
        options = ["--port", str(port), "--repl-diskless-sync-delay", "0"]
        master = MortalServer(server_binary(server_kind), options)
        stack.callback(master.close)
        await master.start()
        wire = await stack.enter_async_context(WireProxy(master.socket_path))
        client = await AsyncClient.connect(wire.url, pool=pool, settings=PATIENT)
        await stack.enter_async_context(client)
        await mortal.start()
        replica = await AsyncClient.connect(mortal.url, pool=pool)
        await stack.enter_async_context(replica)
        ride = Ride(client, cargo, rng, wire.url, is_rolled_back=True)
        for _ in range(2):
            await stack.enter_async_context(forked_worker(**ride.settings()))
        await ride.board(num_jobs, NUM_TOKENS)
        await command(replica.scripts, "REPLICAOF", "127.0.0.1", port)
        await until(lambda: _follows(replica))
        await ride.until_seen(5)
        await command(replica.scripts, "REPLICAOF", "NO", "ONE")
        await ride.until_more(2 * num_jobs)
        master.kill()
        wire.upstream = Path(mortal.socket_path)
        wire.hang_up()
        await ride.arrive()
        await ride.check_nothing_left()


async def _is_live(stream: EventStream) -> bool:
    """Tell whether a stream has learnt that its job exists."""
    return stream._live is not None


async def _is_written(client: AsyncClient) -> bool:
    """Tell whether the server's file holds all that was accepted, though it may not be flushed."""
    info = await command(client.scripts, "INFO", "persistence")
    return bool(info["aof_buffer_length"] == 0)


async def _follows(replica: AsyncClient) -> bool:
    info = await command(replica.scripts, "INFO", "replication")
    return bool(info["master_link_status"] == "up")
