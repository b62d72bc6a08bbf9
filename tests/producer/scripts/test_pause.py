"""A paused pool: jobs are accepted and wait, those that run go on, and nothing wears it off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from workers.stubs import StubWorker, a_job, raw, submit

from tokenbus.producer.scripts.replies import LogStatus, PullStatus, Submitted

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts

# Beside which the time that a test itself takes is nothing.
LONG_MS = 3_600_000


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


async def age(scripts: Scripts, worker: StubWorker, ms: int) -> None:
    """Let the backlog, and what the worker left of it, be so much older."""
    redis, keys = raw(scripts), scripts.keys
    told_by = keys.of("worker", worker.name)
    held, at, young = (await redis.hget(told_by, "left")).split()
    await redis.hset(told_by, "left", b"%s %d %s" % (held, int(at) - ms, young))
    since = await redis.hget(keys.of("drain"), "since")
    if since is not None:
        await redis.hset(keys.of("drain"), "since", int(since) - ms)


async def test_rate_is_measured_between_two_pulls_of_one_worker(scripts: Scripts) -> None:
    """Each adds the time since its own last one, so that the rate is that of one worker."""
    redis, key = raw(scripts), scripts.keys.of("drain")
    worker, other = StubWorker(scripts), StubWorker(scripts)
    await submit(scripts, *(a_job(f"j-{number}") for number in range(8)))
    for pulling in (worker, other):
        await pulling.reconcile()
        await pulling.pull(max_jobs=2)
    assert b"busy" not in await redis.hgetall(key)
    for number, pulling in enumerate((worker, other), 1):
        await age(scripts, pulling, LONG_MS)
        await redis.hdel(scripts.keys.of("held", pulling.name), f"j-{2 * number - 2}")
        await pulling.pull(max_jobs=1)
        told = {name: float(each) for name, each in (await redis.hgetall(key)).items()}
        assert told[b"busy"] == pytest.approx(LONG_MS * number, rel=0.02)
        assert [round(told[name]) for name in (b"jobs", b"pulled")] == [number, number]
        assert round(told[b"tokens"] / told[b"prompts"], 3) == 1.5


async def test_new_worker_counts_once_it_has_ended_what_it_took_at_once(scripts: Scripts) -> None:
    """The short ones among these end first; while no other was measured it counts all the same."""
    redis, keys = raw(scripts), scripts.keys
    worker, other = StubWorker(scripts), StubWorker(scripts)
    await submit(scripts, *(a_job(f"j-{number}") for number in range(20)))
    counted = []
    for pulling in (worker, other):
        await pulling.reconcile()
        await pulling.pull(max_jobs=2)
        for _ in range(4):
            await age(scripts, pulling, 1000)
            [first, *_] = await redis.hkeys(keys.of("held", pulling.name))
            await redis.hdel(keys.of("held", pulling.name), first)
            before = await redis.hget(keys.of("drain"), "busy")
            await pulling.pull(max_jobs=1)
            counted.append(await redis.hget(keys.of("drain"), "busy") != before)
    assert counted == [True, True, True, True, False, False, True, True]


async def test_time_of_a_pause_is_no_backlog(scripts: Scripts) -> None:
    """The measured drain rate does not fall because nothing was pulled meanwhile."""
    worker = StubWorker(scripts)
    await worker.reconcile()
    await submit(scripts, *(a_job(f"j-{number}") for number in range(6)))
    redis, key = raw(scripts), scripts.keys.of("drain")
    await worker.pull(max_jobs=1)
    await age(scripts, worker, LONG_MS)
    await worker.pull(max_jobs=1)
    before = await redis.hget(key, "busy")
    for is_paused in (True, False):
        await scripts.control.pause(is_paused=is_paused)
        # As if the pause, or what came before it, had taken so long.
        await age(scripts, worker, LONG_MS)
    await worker.pull(max_jobs=1)
    assert await redis.hget(key, "busy") == before
    await age(scripts, worker, LONG_MS)
    await worker.pull(max_jobs=1)
    assert float(await redis.hget(key, "busy")) > 1.5 * float(before)
