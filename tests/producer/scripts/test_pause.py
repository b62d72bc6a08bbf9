"""A paused pool: jobs are accepted and wait, those that run go on, and nothing wears it off."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from workers.stubs import StubWorker, a_job, raw, submit

from tokenbus.producer.scripts.replies import LogStatus, PullStatus, Submitted

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts


async def test_paused_pool_accepts_and_hands_out_nothing(scripts: Scripts) -> None:
    """A pull of a paused pool answers `paused`; jobs that are held go on and end."""
    worker, other = StubWorker(scripts), StubWorker(scripts)
    await worker.reconcile()
    await other.reconcile()
    await submit(scripts, a_job("running"))
    [held] = (await worker.pull()).jobs
    since = await scripts.control.pause(is_paused=True)
    [accepted] = await submit(scripts, a_job("waiting"))
    assert isinstance(accepted, Submitted)
    for each in (worker, other):
        pulled = await each.pull()
        assert (pulled.status, pulled.jobs) == (PullStatus.PAUSED, ())
    assert await worker.run("running", held.epoch, 3) is LogStatus.OK
    assert await scripts.control.pause(is_paused=True) == since, "the first pause counts"
    assert await scripts.control.pause(is_paused=False) is None
    assert [job.job_id for job in (await other.pull()).jobs] == ["waiting"]


async def test_pause_outlives_everyone_and_resume_wakes_those_who_wait(scripts: Scripts) -> None:
    """The pause is a key without an end of its own; to resume rings the bell."""
    worker = StubWorker(scripts)
    await worker.reconcile()
    await scripts.control.pause(is_paused=True)
    redis, keys = raw(scripts), scripts.keys
    assert await redis.ttl(keys.of("paused")) == -1
    await redis.script_flush()
    assert (await worker.pull()).status is PullStatus.PAUSED
    await redis.delete(keys.of("bell"))
    await scripts.control.pause(is_paused=False)
    assert await redis.llen(keys.of("bell")) == 1
    assert (await worker.pull()).status is not PullStatus.PAUSED


async def test_time_of_a_backlog_counts_once_for_each_worker(scripts: Scripts) -> None:
    """The rate is kept as that of one worker, however many there are; to fill one is no rate."""
    worker, other = StubWorker(scripts), StubWorker(scripts)
    await submit(scripts, *(a_job(f"j-{number}") for number in range(4)))
    redis, key = raw(scripts), scripts.keys.of("drain")
    told = []
    for pulling in (worker, other):
        await pulling.reconcile()
        await pulling.pull(max_jobs=1)
        # As if the pull had come half a minute after the one before.
        await redis.hset(key, "at", int(await redis.hget(key, "at")) - 30_000)
        await pulling.pull(max_jobs=1)
        told.append(await redis.hgetall(key))
    alone, both = (float(each[b"busy"]) for each in told)
    decay = math.exp(-1.5)
    assert alone == pytest.approx(20_000 * (1 - decay), rel=0.02)
    assert both == pytest.approx(alone * decay + 2 * alone, rel=0.02)
    assert [int(each[b"workers"]) for each in told] == [1, 2]
    # The first has pulled two and ended none.
    assert [float(told[0][name]) for name in (b"pulled", b"jobs")] == [1, 0]


async def test_time_of_a_pause_is_no_backlog(scripts: Scripts) -> None:
    """The measured drain rate does not fall because nothing was pulled meanwhile."""
    worker = StubWorker(scripts)
    await worker.reconcile()
    await submit(scripts, *(a_job(f"j-{number}") for number in range(3)))
    await worker.pull(max_jobs=1)
    redis, key = raw(scripts), scripts.keys.of("drain")
    for is_paused in (True, False):
        await scripts.control.pause(is_paused=is_paused)
        # As if the pause, or what came before it, had taken a minute.
        before = await redis.hgetall(key)
        await redis.hset(key, "at", int(before[b"at"]) - 60_000)
    await worker.pull(max_jobs=1)
    assert (await redis.hget(key, "busy")).split(b".")[0] == before[b"busy"].split(b".")[0]
