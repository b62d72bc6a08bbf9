"""SIGKILL of a worker at every point of a job's life: another goes on, readers see a pause."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from rides.ride import FAST, LONG_TOKENS
from rides.scale import IS_SHORT, both_ways, long_row, short_row
from servers.wire_proxy import Moment
from workers.forkserver import forked_worker
from workers.null_workers import command
from workers.wired import wired_worker

if TYPE_CHECKING:
    from rides.ride import Ride

# Point of death -> the call at which the worker dies, whether the server carried it out, and which
# one of its kind it is.
POINTS = {
    "pull_reply_lost": ("pull", Moment.LOST, 1),
    "prefill": ("pull", Moment.DELIVERED, 1),
    "first_token_not_logged": ("begin", Moment.NEVER, 1),
    "first_token_logged": ("begin", Moment.LOST, 1),
    "second_token_not_logged": ("append", Moment.NEVER, 1),
    "second_token_logged": ("append", Moment.LOST, 1),
    "mid_decode": ("append", Moment.NEVER, 6),
    "mid_decode_logged": ("append", Moment.LOST, 6),
    "commit_not_made": ("end", Moment.NEVER, 1),
    "commit_reply_lost": ("end", Moment.LOST, 1),
    "between_commit_and_completion": ("complete_many", Moment.NEVER, 1),
    "completion_reply_lost": ("complete_many", Moment.LOST, 1),
}

both_moments = pytest.mark.parametrize(
    "moment",
    [pytest.param(Moment.NEVER, marks=long_row), Moment.LOST],
    ids=lambda moment: moment.value,
)


@both_ways
@long_row
@pytest.mark.parametrize("point", POINTS)
async def test_worker_killed_at_a_point_of_the_protocol(
    ride: Ride, num_jobs: int, point: str
) -> None:
    """Whatever call a worker dies in, all jobs end once with the text of the unbroken run."""
    await _die_at(ride, num_jobs, point)


@long_row
@pytest.mark.parametrize("point", POINTS)
async def test_worker_that_drafts_killed_at_a_point_of_the_protocol(
    ride: Ride, num_jobs: int, point: str
) -> None:
    """With several tokens a step too, the text is that of the unbroken run without drafts.

    Few at a time: in large batches of so small a model drafts pay too rarely to be tried.
    """
    await _die_at(ride, num_jobs, point, speculation="auto", max_num_seqs=4)


async def _die_at(ride: Ride, num_jobs: int, point: str, **settings: Any) -> None:
    """Kill a worker at a point, and let another end all jobs."""
    async with wired_worker(**ride.settings(**settings)) as victim:
        trap = victim.die_at(*POINTS[point])
        await ride.board(num_jobs)
        await ride.until_closed([trap])
        assert await victim.wait() == -signal.SIGKILL
        async with forked_worker(**ride.settings(**settings)):
            await ride.arrive()
            await ride.check_nothing_left()
            if "speculation" in settings:
                assert await ride.num_accepted()


@short_row
async def test_workers_killed_at_every_point_of_the_protocol(ride: Ride, num_jobs: int) -> None:
    """Each worker holds two jobs and dies in another call; one that comes later ends all jobs."""
    async with AsyncExitStack() as stack:
        traps = []
        for point in POINTS.values():
            few = ride.settings(max_num_seqs=2, max_pull_jobs=2)
            victim = await stack.enter_async_context(wired_worker(**few))
            traps.append(victim.die_at(*point))
        await ride.board(2 * len(POINTS) + num_jobs)
        await ride.until_closed(traps)
        await stack.enter_async_context(forked_worker(**ride.settings()))
        await ride.arrive()
        await ride.check_nothing_left()


@pytest.mark.parametrize(
    ("script", "moment"),
    [
        ("append", Moment.LOST),
        pytest.param("takeover", Moment.NEVER, marks=long_row),
        pytest.param("takeover", Moment.LOST, marks=long_row),
    ],
)
async def test_two_workers_die_in_turn_under_one_job(
    ride: Ride, num_jobs: int, script: str, moment: Moment
) -> None:
    """The second dies while it takes over what the first left: the third goes on from the log.

    Two deaths make a job a suspect, which runs alone; none of them is taken for poison. As a reaper
    it takes each log over in a call of its own; the one after those is an owner's.
    """
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(wired_worker(**ride.settings()))
        trap = first.die_at("append", Moment.LOST, 5)
        # Long enough for two calls of the second, however many tokens a busy machine puts in one.
        await ride.board(num_jobs, LONG_TOKENS if script == "append" else 24)
        await trap.closed()
        await first.wait()
        num_left = await _num_held(ride)
        second = await stack.enter_async_context(wired_worker(**ride.settings()))
        trap = second.die_at(script, moment, 2 if script == "append" else num_left + 1)
        await trap.closed()
        await stack.enter_async_context(forked_worker(**ride.settings(**FAST)))
        stories = await ride.arrive()
        assert any(len(story.epochs) > 1 for story in stories.values())
        await ride.check_nothing_left()


async def _num_held(ride: Ride) -> int:
    """Count the jobs that the only worker there was has left."""
    scripts = ride.client.scripts
    [worker] = await command(scripts, "SMEMBERS", scripts.keys.of("workers"))
    return int(await command(scripts, "HLEN", scripts.keys.of("held", worker.decode())))


@both_moments
async def test_worker_dies_while_it_takes_over(ride: Ride, num_jobs: int, moment: Moment) -> None:
    """A reaper that dies after it fenced the log, with the job not or just back in the queue."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(wired_worker(**ride.settings()))
        trap = first.die_at("append", Moment.LOST, 5)
        await ride.board(num_jobs, 24)
        await ride.until_closed([trap])
        reaper = await stack.enter_async_context(wired_worker(**ride.settings()))
        trap = reaper.die_at("requeue", moment)
        await trap.closed()
        await stack.enter_async_context(forked_worker(**ride.settings()))
        await ride.arrive()
        await ride.check_nothing_left()


@both_ways
@both_moments
async def test_workers_killed_over_whole_answers(ride: Ride, num_jobs: int, moment: Moment) -> None:
    """Answers of one to eight tokens, of which some go out whole, and workers that die of those.

    All die amid the first few; that many more go on rightly is tried by `test_small_jobs.py`.
    """
    num_kills = 2 if IS_SHORT else 10
    await ride.board(4 * num_jobs, 8)
    async with AsyncExitStack() as stack:
        for kill in range(num_kills):
            few = ride.settings(max_num_seqs=8, max_pull_jobs=8)
            victim = await stack.enter_async_context(wired_worker(**few))
            await victim.die_at("begin", moment, 1 + kill % 3).closed()
        await stack.enter_async_context(forked_worker(**ride.settings()))
        await ride.arrive()
        await ride.check_nothing_left()


@both_ways
@both_moments
async def test_worker_killed_while_it_drains(ride: Ride, num_jobs: int, moment: Moment) -> None:
    """SIGTERM, and SIGKILL at the first hand-back: what was handed back goes on, the rest too."""
    async with AsyncExitStack() as stack:
        # So slow that it has jobs to hand back, however late the signal comes.
        slow = ride.settings(drain_deadline_s=0, null_tokens_per_s=12)
        first = await stack.enter_async_context(wired_worker(**slow))
        await ride.board(num_jobs, 120)
        await ride.until_seen(5)
        # Not before: a job that found no room goes back in quiet times too.
        trap = first.die_at("requeue", moment)
        first.send(signal.SIGTERM)
        await trap.closed()
        assert await first.wait() == -signal.SIGKILL
        await stack.enter_async_context(forked_worker(**ride.settings()))
        await ride.arrive()
        await ride.check_nothing_left()


@both_ways
@pytest.mark.parametrize("pause_s", [2.5])
async def test_paused_worker_wakes_up_to_jobs_of_others(
    ride: Ride, num_jobs: int, pause_s: float
) -> None:
    """SIGSTOP for longer than the lease, then SIGCONT: nothing the zombie writes is taken."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(forked_worker(**ride.settings()))
        await ride.board(num_jobs, 120)
        await ride.until_seen(5)
        await stack.enter_async_context(forked_worker(**ride.settings()))
        first.send(signal.SIGSTOP)
        # How long the pause lasts is what is tried.
        await asyncio.sleep(pause_s)
        first.send(signal.SIGCONT)
        await ride.arrive()
        await ride.check_nothing_left()
