"""Only one process of a worker dies or hangs, or its clock is wrong."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from worker_stable import forked_worker

if TYPE_CHECKING:
    from bus_ride import Ride


async def test_engine_process_killed(ride: Ride, num_jobs: int) -> None:
    """SIGKILL of the engine alone: its worker starts another and goes on from the logs."""
    async with forked_worker(**ride.settings()) as worker:
        await ride.board(num_jobs, 80)
        await ride.until_seen(5)
        os.kill(worker.engine_pid(), signal.SIGKILL)
        stories = await ride.arrive()
        assert any(len(story.epochs) > 1 for story in stories.values())
        await ride.check_nothing_left()


async def test_engine_dies_with_its_worker(ride: Ride, num_jobs: int) -> None:
    """SIGKILL of the worker process alone: its engine is gone within a second, another goes on."""
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(forked_worker(**ride.settings()))
        await ride.board(num_jobs, 80)
        await ride.until_seen(5)
        engine = os.pidfd_open(worker.engine_pid())
        worker.kill()
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(engine, ended.set)
        async with asyncio.timeout(1):
            await ended.wait()
        asyncio.get_running_loop().remove_reader(engine)
        os.close(engine)
        await stack.enter_async_context(forked_worker(**ride.settings()))
        await ride.arrive()
        await ride.check_nothing_left()


async def test_hung_engine(ride: Ride, num_jobs: int) -> None:
    """An engine that takes no step any more is replaced; its jobs go on from the logs."""
    settings = ride.settings(engine_stall_s=1.5)
    async with forked_worker(**settings) as worker:
        await ride.board(num_jobs, 80)
        await ride.until_seen(5)
        os.kill(worker.engine_pid(), signal.SIGSTOP)
        await ride.arrive()
        await ride.check_nothing_left()


async def test_wall_clocks_an_hour_apart(ride: Ride, num_jobs: int) -> None:
    """One worker's clock is an hour ahead, the other's an hour behind: nobody looks at either.

    Jobs with a deadline and a delay are among them; server time alone decides.
    """
    async with AsyncExitStack() as stack:
        ahead = await stack.enter_async_context(
            forked_worker(clock_error_s=3600, **ride.settings())
        )
        await stack.enter_async_context(forked_worker(clock_error_s=-3600, **ride.settings()))
        await ride.board(num_jobs, 80, deadline_s=1800)
        await ride.board(num_jobs, 80, not_before_s=0.5)
        await ride.until_seen(5, num_jobs)
        ahead.kill()
        await ride.arrive()
        await ride.check_nothing_left()
