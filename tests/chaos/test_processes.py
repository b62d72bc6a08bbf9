"""Only one process of a worker dies or hangs, or its clock is wrong."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from patience import until_within
from rides.scale import both_ways, publishers_too
from workers.forkserver import forked_worker

if TYPE_CHECKING:
    from rides.ride import Ride


@both_ways
async def test_engine_process_killed(ride: Ride, num_jobs: int) -> None:
    """SIGKILL of the engine alone: its worker starts another and goes on from the logs."""
    async with forked_worker(**ride.settings()) as worker:
        await ride.board(num_jobs, 80)
        await ride.board_long()
        os.kill(worker.engine_pid(), signal.SIGKILL)
        stories = await ride.arrive()
        assert any(len(story.epochs) > 1 for story in stories.values())
        await ride.check_nothing_left()


@publishers_too
async def test_engine_and_publishers_die_with_their_worker(
    ride: Ride, num_jobs: int, num_publishers: int
) -> None:
    """SIGKILL of the worker process alone: its others are gone within a second, another goes on."""
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(forked_worker(**ride.settings()))
        await ride.board(num_jobs, 80)
        await ride.until_seen(5)
        publishers = worker.publisher_pids()
        assert len(publishers) == num_publishers
        orphans = [os.pidfd_open(pid) for pid in (worker.engine_pid(), *publishers)]
        worker.kill()
        ended = asyncio.gather(*map(_ended, orphans))
        await until_within(ended.done, 1)
        await ended
        await stack.enter_async_context(forked_worker(**ride.settings()))
        await ride.arrive()
        await ride.check_nothing_left()


async def _ended(process: int) -> None:
    """Wait for the end of the process behind a descriptor, and close that."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(process, ended.set)
    await ended.wait()
    loop.remove_reader(process)
    os.close(process)


@pytest.mark.parametrize("num_publishers", [2], indirect=True)
async def test_publisher_process_killed(ride: Ride, num_jobs: int) -> None:
    """SIGKILL of one publisher: its worker ends with an error, another goes on from the logs."""
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(forked_worker(**ride.settings()))
        await ride.board(num_jobs, 80)
        await ride.board_long()
        os.kill(worker.publisher_pids()[0], signal.SIGKILL)
        assert await worker.wait() > 0
        await stack.enter_async_context(forked_worker(**ride.settings()))
        stories = await ride.arrive()
        assert any(len(story.epochs) > 1 for story in stories.values())
        await ride.check_nothing_left()


@pytest.mark.parametrize("num_publishers", [2], indirect=True)
async def test_hung_worker_process_leaves_no_publisher_that_writes(
    ride: Ride, num_jobs: int
) -> None:
    """While the worker process is stopped past its lease, its publishers do not wait for it.

    They write what they have at most, and are fenced where others took over.
    """
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(forked_worker(**ride.settings()))
        await ride.board(num_jobs, 80)
        await ride.board_long()
        await stack.enter_async_context(forked_worker(**ride.settings()))
        worker.send(signal.SIGSTOP)
        stories = await ride.arrive()
        assert any(len(story.epochs) > 1 for story in stories.values())
        worker.send(signal.SIGCONT)
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
