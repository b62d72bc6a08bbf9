"""Only one process of a worker dies or hangs, or its clock is wrong.

`CHAOS_PROBERS` says how often the process that tries grammars is killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S, until_within
from rides.ride import FAST, ModelCargo, Ride
from rides.scale import both_ways, long_row, number_of, publishers_too
from workers.forkserver import forked_worker
from workers.stubs import until

from tokenbus.producer.contract.bounds import DEFAULT_PRIORITY

if TYPE_CHECKING:
    import random

    from models.tiny_model import TinyModel
    from workers.forkserver import ForkedWorker

    from tokenbus.producer.client.async_client import AsyncClient

NUM_PROBER_KILLS = number_of("PROBERS", 3, 100)
# Asked for side by side; a tenant has a lane or two of trials.
NUM_ASKING = 8
# A session that is lost hands back what an unanswered pull took, and such a job has two owners too.
# A new prober takes a second of processor time, which the shortest lease does not always outlast.
UNHURRIED = {"lease_ttl_s": 30, "renew_interval_s": 5, "call_timeout_s": 30}


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
        await stack.enter_async_context(forked_worker(**ride.settings(**FAST)))
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
        worker.send(signal.SIGSTOP)
        await stack.enter_async_context(forked_worker(**ride.settings(**FAST)))
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


@long_row
async def test_prober_killed_again_and_again(
    client: AsyncClient, model: TinyModel, rng: random.Random, redis_url: str, num_jobs: int
) -> None:
    """Grammars that nobody has asked for before go on being tried, and streams notice nothing."""
    ride = Ride(client, ModelCargo(model), rng, redis_url)
    async with forked_worker(**ride.settings(max_num_seqs=256, **UNHURRIED)) as worker:
        # Of one class, so that none makes room for another.
        await ride.board(num_jobs, 80, priority=DEFAULT_PRIORITY)
        await ride.until_seen(1)
        engine = worker.engine_pid()
        is_over, answered = asyncio.Event(), asyncio.Semaphore(0)
        async with asyncio.TaskGroup() as group:
            for number in range(NUM_ASKING):
                group.create_task(_ask(client, number, is_over, answered))
            for _ in range(NUM_PROBER_KILLS):
                await until(lambda: _has_prober(worker))
                os.kill(worker.prober_pids()[0], signal.SIGKILL)
                async with asyncio.timeout(PATIENCE_S):
                    for _ in range(rng.randrange(1, 2 * NUM_ASKING)):
                        await answered.acquire()
            is_over.set()
        stories = await ride.arrive()
        assert worker.engine_pid() == engine
        assert {epoch for story in stories.values() for epoch in story.epochs} == {1}
        await ride.check_nothing_left()


async def _has_prober(worker: ForkedWorker) -> bool:
    return bool(worker.prober_pids())


async def _ask(
    client: AsyncClient, number: int, is_over: asyncio.Event, answered: asyncio.Semaphore
) -> None:
    """Ask for answers by grammars of which each is new."""
    count = 0
    while not is_over.is_set():
        grammar = {"kind": "regex", "source": f"(no|yes){number}x{count}"}
        job = await client.submit(
            "Is it?", tenant=f"asking-{number % 3}", max_tokens=24, grammar=grammar
        )
        result = await client.result(job, PATIENCE_S)
        assert result.text in (f"no{number}x{count}", f"yes{number}x{count}")
        count += 1
        answered.release()
