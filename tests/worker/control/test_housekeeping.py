"""The chores of a pool: the backstop for dead workers, retention, digest, usage and pressure."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
import structlog
from workers.stubs import StubWorker, a_job, raw, submit, until

from tokenbus.producer.scripts.replies import JobState
from tokenbus.worker.control.housekeeping import Housekeeping, TenantUsage, read_usage
from tokenbus.worker.control.settings import ControlSettings

if TYPE_CHECKING:
    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.replies import Orphan


@pytest.fixture
def house(client: AsyncClient, redis_url: str, pool: str) -> Housekeeping:
    """Give the chores of the pool."""
    settings = ControlSettings.load(redis_url=redis_url, pool=pool, lease_ttl_s=1)
    return Housekeeping(client, settings)


async def test_job_of_a_dead_worker_goes_back_without_any_worker(
    scripts: Scripts, house: Housekeeping
) -> None:
    """The backstop gives the job back and strikes the dead off; the living stay."""
    await submit(scripts, a_job("orphan"))
    dead = StubWorker(scripts)
    await dead.reconcile()
    await dead.pull()
    await dead.start("orphan", 1)
    await dead.die()
    idle = StubWorker(scripts)
    await idle.reconcile()
    await house.reap()
    record = await scripts.queue.record("orphan")
    assert record is not None
    assert (record.state, record.attempts) == (JobState.WAITING, 1)
    await house.reap()
    members = await raw(scripts).smembers(scripts.keys.of("workers"))
    assert members == {idle.name.encode()}


async def test_worker_that_renews_in_time_keeps_its_jobs(
    scripts: Scripts, house: Housekeeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that was away has dropped all leases: who renews within two of them is alive."""
    await submit(scripts, a_job("kept"))
    alive = StubWorker(scripts)
    await alive.reconcile()
    await alive.pull()
    await alive.die()
    scan, was_missed, has_renewed = scripts.lease.scan, asyncio.Event(), asyncio.Event()

    async def noting() -> list[Orphan]:
        if was_missed.is_set():
            # Two leases are over, however late the worker was woken for its renewal.
            await has_renewed.wait()
        found = await scan()
        if found:
            was_missed.set()
        return found

    monkeypatch.setattr(scripts.lease, "scan", noting)
    reaping = asyncio.create_task(house.reap())
    await was_missed.wait()
    await alive.reconcile()
    has_renewed.set()
    await reaping
    record = await scripts.queue.record("kept")
    assert record is not None
    assert record.state is JobState.HELD


async def test_expired_job_ends_without_any_worker(scripts: Scripts, house: Housekeeping) -> None:
    """Deadlines hold also while nobody pulls."""
    await submit(scripts, a_job("late", deadline_ms=1))

    async def has_ended() -> bool:
        await house.reap()
        record = await scripts.queue.record("late")
        return record is not None and record.state is JobState.DONE

    await until(has_ended)


async def test_ended_log_without_a_time_gets_one(scripts: Scripts, house: Housekeeping) -> None:
    """What a rollback left with its belt expires like every other; a live log is not touched."""
    worker = StubWorker(scripts)
    await worker.reconcile()
    await submit(scripts, a_job("over"), a_job("live"))
    for job in (await worker.pull()).jobs:
        await worker.start(job.job_id, job.epoch)
        if job.job_id == "over":
            await worker.end("over", job.epoch, 0)
    await raw(scripts).delete(scripts.keys.of("job", "over"))
    await house.retain()
    ttl = raw(scripts).pttl
    assert 0 < await ttl(scripts.keys.log("over")) <= 120_000
    assert 120_000 < await ttl(scripts.keys.result("over")) <= 3_600_000
    assert await ttl(scripts.keys.log("live")) > 3_600_000


async def test_digest_counts_each_letter_once(scripts: Scripts, house: Housekeeping) -> None:
    """A digest tells what came since the last one, also after letters were deleted."""
    redis, key = raw(scripts), scripts.keys.of("digest")
    finish = '{"reason":"failed","error":{"code":"poison","field":null,"message":"m"}}'

    async def letter() -> bytes:
        fields = {"job": "j", "tenant": "acme", "finish": finish, "body": "", "at": 1}
        entry: bytes = await redis.xadd(scripts.keys.of("dead"), fields)
        return entry

    newest = [await letter() for _ in range(3)][-1]
    await house.digest()
    first = await redis.hget(key, "digest")
    assert b'"letters": 3' in first
    assert b'{"poison": 3}' in first
    await house.digest()
    assert await redis.hget(key, "digest") == first
    await redis.xdel(scripts.keys.of("dead"), newest)
    await letter()
    await house.digest()
    assert b'"letters": 1' in await redis.hget(key, "digest")


async def test_pressure_says_how_long_the_backlog_takes(
    scripts: Scripts, house: Housekeeping
) -> None:
    """Autoscalers read tokens, rate and seconds; before a rate these are by what is assumed."""

    async def published() -> dict[str, object]:
        await house.publish_pressure()
        value: dict[str, object] = json.loads(await raw(scripts).get(scripts.keys.of("pressure")))
        return value

    assert (await published())["seconds"] == 0
    await submit(scripts, a_job("one"))
    waiting = await published()
    assert (waiting["waiting_jobs"], waiting["waiting_tokens"]) == (1, 48)
    assert waiting["tokens_per_s"] is None
    assert waiting["seconds"] == pytest.approx(30 + 48 / 1000)
    drain = scripts.keys.of("drain")
    await raw(scripts).hset(drain, mapping={"tokens": 1000, "busy": 10_000})
    measured = await published()
    assert measured["seconds"] == measured["worker_seconds"] == pytest.approx(0.18)
    assert await raw(scripts).pttl(scripts.keys.of("pressure")) > 0


async def test_hour_that_is_over_is_reported_by_tenant(
    scripts: Scripts, house: Housekeeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report has the last hour's jobs and tokens, the largest tenants by name."""
    redis = raw(scripts)
    seconds, _ = await redis.time()
    key = scripts.keys.of("usage", str(seconds // 3600 - 1))
    small = {"a|b|jobs": 1, "a|b|prompt_tokens": 5, "a|b|completion_tokens": 2}
    await redis.hset(key, mapping=small | {"big|jobs": 3, "big|completion_tokens": 70})
    assert await read_usage(redis, key) == {
        "a|b": TenantUsage(jobs=1, prompt_tokens=5, completion_tokens=2),
        "big": TenantUsage(jobs=3, completion_tokens=70),
    }
    logged = structlog.testing.CapturingLogger()
    monkeypatch.setattr(house, "_log", logged)
    await house.close_hour()
    [call] = logged.calls
    line = call.kwargs
    assert call.args == ("usage.hour_closed",)
    assert (line["jobs"], line["prompt_tokens"], line["completion_tokens"]) == (4, 5, 72)
    assert list(line["largest"].items()) == [("big", 70), ("a|b", 2)]
