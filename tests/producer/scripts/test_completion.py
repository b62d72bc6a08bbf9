"""Whoever ends a job may stop anywhere between the end and the last step of the completion.

Others finish what was left, all of it expires, and then the sleeper goes on: nothing may be ended
twice, brought back to life or left behind.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from workers.null_workers import leaked_keys
from workers.stubs import a_job, num_ends, owned_end, pulled, raw, submit

from tokenbus.producer.scripts.completion import RECORD_MARGIN_MS, Retention

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tokenbus.producer.scripts import End, Scripts
    from tokenbus.producer.scripts.completion import JobCompletion

J = "j-1"
KEEP = Retention()
# Longer than anything of a completed job is kept, far shorter than a log that waits for completion.
AGE_MS = KEEP.result_ms + 400_000
# After this the tick takes up an end that somebody left.
MOMENT_MS = 6000
STEPS = ("end", "complete", "log-ttl", "result-ttl", "expire_record")


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
    keys, redis = scripts.keys, raw(scripts)
    return [
        lambda: scripts.log.end([end]),
        lambda: scripts.lease.complete(J, end.finish, 32 + end.last, failed=False),
        lambda: redis.pexpire(keys.log(J), KEEP.log_ms),
        lambda: redis.pexpire(keys.result(J), KEEP.result_ms),
        lambda: scripts.queue.expire_record(J, KEEP.result_ms + RECORD_MARGIN_MS),
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
@pytest.mark.parametrize("num_taken", range(1, len(STEPS)), ids=[f"after-{s}" for s in STEPS[:-1]])
async def test_sleep_between_end_and_completion_changes_nothing(
    scripts: Scripts,
    completion: JobCompletion,
    num_taken: int,
    nap_ms: int,
    begin: Callable[[Scripts], Awaitable[End]],
) -> None:
    """The log keeps its one end until the job is completed, and expires once, for good.

    All sleep first, for moments or for an age; the others wake up then, the sleeper an age later.
    """
    end = await begin(scripts)
    steps = _steps(scripts, end)
    for step in steps[:num_taken]:
        await step()
    await _pass(scripts, nap_ms)
    has_expired = nap_ms == AGE_MS and num_taken > STEPS.index("log-ttl")
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
