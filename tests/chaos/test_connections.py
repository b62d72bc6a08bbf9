"""Connections that break, fall silent or lose one reply: what was carried out is found out."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rides.ride import Ride
from rides.scale import PATIENT, long_row
from servers.wire_proxy import Moment, WireProxy
from workers.forkserver import forked_worker
from workers.wired import wired_worker

from tokenbus.producer.client.async_client import AsyncClient

if TYPE_CHECKING:
    import random

    from rides.ride import Cargo

LOST_REPLIES = (*("pull", "begin", "takeover", "append", "renew", "tick", "end", "complete_many"),)
# How long a cut lasts is what is tried, so the tests sleep it out.
CUTS_S = [1, pytest.param(10, marks=long_row), pytest.param(60, marks=long_row)]


def _nothing() -> None:
    """Let the cut of the connection be all that happens."""


async def test_reply_lost_after_the_script_ran(ride: Ride, num_jobs: int) -> None:
    """Every script of a worker is carried out once without its knowing: it goes on, once."""
    async with wired_worker(**ride.settings()) as worker:
        await ride.board(num_jobs, 120)
        await ride.until_seen(5)
        traps = [worker.wire.trap(name, Moment.LOST, _nothing) for name in LOST_REPLIES]
        await ride.board(2 * num_jobs)
        await ride.until_closed(traps)
        await ride.arrive()
        await ride.check_nothing_left()


@pytest.mark.parametrize("cut_s", CUTS_S)
async def test_worker_cut_off_is_replaced_and_comes_back(
    ride: Ride, num_jobs: int, cut_s: float
) -> None:
    """One worker cannot reach the server: past its lease another has its jobs, and it rejoins."""
    async with wired_worker(**ride.settings()) as worker, forked_worker(**ride.settings()):
        await ride.board(num_jobs, 120)
        await ride.until_seen(5)
        worker.wire.cut()
        await asyncio.sleep(cut_s)
        worker.wire.mend()
        await ride.board(num_jobs)
        await ride.arrive()
        await ride.check_nothing_left()


@pytest.mark.parametrize("cut_s", CUTS_S)
async def test_everyone_cut_off_goes_on_afterwards(
    redis_url: str, pool: str, cargo: Cargo, rng: random.Random, num_jobs: int, cut_s: float
) -> None:
    """Workers, readers and clients lose the server together; nothing was taken by anyone else."""
    async with (
        WireProxy(Path(redis_url.removeprefix("unix://"))) as wire,
        await AsyncClient.connect(wire.url, pool=pool, settings=PATIENT) as client,
    ):
        ride = Ride(client, cargo, rng, wire.url)
        async with forked_worker(**ride.settings()), forked_worker(**ride.settings()):
            await ride.board(num_jobs, 120)
            await ride.until_seen(5)
            wire.cut()
            await asyncio.sleep(cut_s)
            wire.mend()
            await ride.board(num_jobs)
            await ride.arrive()
            await ride.check_nothing_left()


async def test_partition_without_a_word_is_noticed(ride: Ride, num_jobs: int) -> None:
    """Packets vanish, no connection is closed: calls time out, another worker goes on."""
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(wired_worker(**ride.settings()))
        await ride.board(num_jobs, 120)
        await ride.until_seen(5)
        worker.wire.fall_silent()
        await stack.enter_async_context(forked_worker(**ride.settings()))
        await ride.arrive()
        worker.wire.mend()
        await ride.check_nothing_left()
