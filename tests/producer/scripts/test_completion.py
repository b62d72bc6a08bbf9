"""Whoever ends a job may stop anywhere between the end and the last step of the completion.

Others finish what was left, all of it expires, and then the sleeper goes on: nothing may be ended
twice, brought back to life or left behind.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S
from workers.null_workers import leaked_keys
from workers.stubs import StubWorker, a_job, num_ends, owned_end, pulled, raw, submit

from tokenbus.engine.chat.usage import Usage
from tokenbus.producer.contract.events import Finish
from tokenbus.producer.scripts import Scripts
from tokenbus.producer.scripts.completing import Completed, Retention
from tokenbus.producer.scripts.completion import RECORD_MARGIN_MS, JobCompletion

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tokenbus.producer.scripts import End

J = "j-1"
KEEP = Retention()
# Longer than anything of a completed job is kept, far shorter than a log that waits for completion.
AGE_MS = KEEP.result_ms + 400_000
# After this the tick takes up an end that somebody left.
MOMENT_MS = 6000
IN_STEPS = ("end", "mark_done", "retain", "expire_records")
IN_ONE_TURN = ("end", "complete")
# How the sleeper completes, how others do, and after how many of its steps it falls asleep.
NAPS = [
    pytest.param(steps, num_taken, id=f"{way}-after-{steps[num_taken - 1]}")
    for way, steps in (("in-steps", IN_STEPS), ("in-one-turn", IN_ONE_TURN))
    for num_taken in range(1, len(steps))
]


async def _owned(scripts: Scripts) -> End:
    """Run a job of two tokens up to its end; return the end, its owner gone."""
    worker = await pulled(scripts, J)
    await worker.start(J, 1)
    await worker.append(J, 1, 1, 2)
    await worker.die()
    return owned_end(J, 1, 2)


async def _cancelled(scripts: Scripts) -> End:
    """Cancel a job that waits; return the end that the canceller is to write."""
    await submit(scripts, a_job(J))
    reply = await scripts.queue.cancel(J)
    assert reply.ending is not None
    return replace(owned_end(J, reply.ending.epoch, 0, "cancelled"), owned=False)


def _steps(scripts: Scripts, end: End) -> list[Callable[[], Awaitable[object]]]:
    """Return the calls that end and complete a job."""
    jobs, ttl_ms = [Completed.of(J, end.finish)], KEEP.result_ms + RECORD_MARGIN_MS
    if scripts.completion.is_one_server:
        return [
            lambda: scripts.log.end([end]),
            lambda: scripts.completion.complete(jobs, KEEP, ttl_ms),
        ]
    return [
        lambda: scripts.log.end([end]),
        lambda: scripts.completion.mark_done(jobs),
        lambda: scripts.completion.retain(jobs, KEEP),
        lambda: scripts.completion.expire_records(jobs, [0], KEEP, ttl_ms),
    ]


async def _pass(scripts: Scripts, ms: int) -> None:
    """Let time pass for every TTL and for what is about to end."""
    redis = raw(scripts)
    async for key in redis.scan_iter(f"{{tb:{scripts.keys.pool}*", count=1000):
        left = await redis.pttl(key)
        if 0 <= left <= ms:
            await redis.delete(key)
        elif left > 0:
            await redis.pexpire(key, left - ms)
    ending = scripts.keys.of("ending")
    for job, score in await redis.zrange(ending, 0, -1, withscores=True):
        await redis.zadd(ending, {job: score - ms})


async def _look_after(scripts: Scripts, completion: JobCompletion) -> None:
    """Do what any living worker does: reap the dead, and tick."""
    for orphan in await scripts.lease.scan():
        await completion.reap("another", orphan, completion._clock())
    await completion.tick()


@pytest.mark.parametrize("begin", [_owned, _cancelled], ids=["owner", "canceller"])
@pytest.mark.parametrize("nap_ms", [MOMENT_MS, AGE_MS], ids=["for-moments", "for-an-age"])
@pytest.mark.parametrize(("names", "num_taken"), NAPS)
async def test_sleep_between_end_and_completion_changes_nothing(
    scripts: Scripts,
    completion: JobCompletion,
    names: tuple[str, ...],
    num_taken: int,
    nap_ms: int,
    begin: Callable[[Scripts], Awaitable[End]],
) -> None:
    """The log keeps its one end until the job is completed, and expires once, for good.

    All sleep first, for moments or for an age; the others wake up then, the sleeper an age later.
    """
    scripts.completion.is_one_server = names is IN_ONE_TURN
    end = await begin(scripts)
    steps = _steps(scripts, end)
    for step in steps[:num_taken]:
        await step()
    await _pass(scripts, nap_ms)
    has_expired = nap_ms == AGE_MS and "retain" in names[:num_taken]
    assert await num_ends(scripts, J) == (not has_expired)
    await _look_after(scripts, completion)
    assert await num_ends(scripts, J) == (not has_expired)
    record = await scripts.queue.record(J)
    assert record is not None
    assert record.state == "done"
    await _pass(scripts, AGE_MS)
    for step in steps[num_taken:]:
        await step()
    await _pass(scripts, AGE_MS)
    await _look_after(scripts, completion)
    assert await scripts.log.events(J) is None
    assert await scripts.log.result(J) is None
    assert await scripts.queue.record(J) is None
    assert await leaked_keys(scripts) == []


async def _books(scripts: Scripts) -> dict[str, object]:
    """Read what completions write down beside the records."""
    keys, redis = scripts.keys, raw(scripts)
    [usage] = [key async for key in redis.scan_iter(keys.of("usage", "*"))]
    return {
        "usage": await redis.hgetall(usage),
        "time": await redis.zrange(keys.of("running", "1"), 0, -1, withscores=True),
        "holding": await redis.hgetall(keys.of("holding", "1")),
        "letters": sorted(letter[b"job"] for _, letter in await redis.xrange(keys.of("dead"))),
    }


@pytest.mark.parametrize("is_one_server", [True, False], ids=["in-one-turn", "in-steps"])
async def test_many_jobs_are_completed_like_one_after_the_other(
    scripts: Scripts, is_one_server: bool
) -> None:
    """The books of a batch are those of as many single completions; each job is announced."""
    told: list[dict[str, object]] = []
    redis, pool = scripts.redis, scripts.keys.pool
    for size in (1, 64):
        scripts = Scripts(redis, f"{pool}-by-{size}")
        scripts.completion.is_one_server = is_one_server
        jobs = [a_job(f"s{n % 2}-{n}", tenant=f"t{n % 3}", weight=2 ** (n % 3)) for n in range(12)]
        await submit(scripts, *jobs)
        worker = StubWorker(scripts)
        await worker.reconcile()
        await worker.pull()
        ended = raw(scripts).pubsub(ignore_subscribe_messages=True)
        await ended.subscribe(scripts.keys.of("ended"))
        names = [job.job_id for job in jobs]
        done = [
            Completed.of(name, Finish(reason, Usage(30 + n, n, 5)).dump())
            for n, (name, reason) in enumerate(
                zip(names, ("stop", "failed", "length") * 3, strict=False)
            )
        ]
        completion = JobCompletion(scripts)
        for first in range(0, len(done), size):
            assert not any(await completion.complete_many(done[first : first + size]))
        told.append(await _books(scripts))
        assert {job.job_id for job in await worker.reconcile()} == set(names[9:])
        assert await raw(scripts).zcard(scripts.keys.of("ending")) == 0
        heard: list[str] = []
        async with asyncio.timeout(PATIENCE_S):
            while len(heard) < len(done):
                message = await ended.get_message(timeout=1)
                heard += [] if message is None else [message["data"].decode()]
        assert sorted(heard) == sorted(names[:9])
        await ended.aclose()
    assert told[0] == told[1]
    assert told[0]["letters"] == [b"s0-4", b"s1-1", b"s1-7"]


async def test_job_of_a_batch_that_breaks_fails_alone(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """Those beside it are complete; it lies in `ending` and is completed once that is possible."""
    await submit(scripts, a_job("j-a"), a_job("j-b"), a_job("j-c"))
    worker = StubWorker(scripts)
    await worker.reconcile()
    await worker.pull()
    keys, redis = scripts.keys, raw(scripts)
    for name in ("j-a", "j-b", "j-c"):
        await worker.run(name, 1, 1)
    jobs = [Completed.of(name, owned_end(name, 1, 1).finish) for name in ("j-a", "j-b", "j-c")]
    record = await redis.dump(keys.of("job", "j-b"))
    await redis.set(keys.of("job", "j-b"), "no hash")
    whys = await completion.complete_many(jobs)
    assert [bool(why) for why in whys] == [False, True, False]
    assert [entry.job_id for entry in await worker.reconcile()] == ["j-b"]
    assert await redis.zrange(keys.of("ending"), 0, -1) == [b"j-b"]
    await redis.restore(keys.of("job", "j-b"), 0, record, replace=True)
    assert await completion.complete_many(jobs) == ["", "", ""]
    assert await worker.reconcile() == []
    assert await redis.zcard(keys.of("ending")) == 0
