"""Crons: each tick once among all services, and the jobs of the table under ids of their tick."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from bus_stubs import StubWorker, a_job, raw, submit, until
from bus_workers import PATIENCE_S
from control_processes import control_process

from tokenbus.producer.replies import JobState
from tokenbus.worker.control.crons import Crons
from tokenbus.worker.control.housekeeping import Housekeeping
from tokenbus.worker.control.settings import ControlSettings
from tokenbus.worker.control.timetable import At, Entry, Timetable
from tokenbus.worker.errors import SettingsInvalid

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.producer.client import AsyncClient
    from tokenbus.producer.scripts import Scripts

NUM_CRONS = 20
NUM_TICKS = 100


async def test_each_tick_runs_once_among_two_services(
    scripts: Scripts, pool: str, redis_url: str, tmp_path: Path
) -> None:
    """A hundred ticks of twenty crons, two services: each ran once, each made one job."""
    table = tmp_path / "crons.toml"
    second = list(range(60))
    table.write_text(
        "".join(
            f'[[cron]]\nname = "c{n}"\nat = {{ second = {second} }}\n'
            'request = { prompt = "x", max_tokens = 4 }\n'
            for n in range(NUM_CRONS)
        )
    )
    args = (pool, redis_url, "--crons", str(table))
    async with control_process(*args) as one, control_process(*args) as two:

        def ran() -> list[tuple[str, int]]:
            lines = one.logged("cron.ran") + two.logged("cron.ran")
            return [(li["cron"], li["tick_ms"]) for li in lines if li["cron"].startswith("table:")]

        async with asyncio.timeout(PATIENCE_S):
            while len(ran()) < NUM_TICKS:  # noqa: ASYNC110 -- another process logs
                await asyncio.sleep(0.05)
        one.kill()
        two.kill()
    counted = Counter(ran())
    assert set(counted.values()) == {1}
    ticks = {tick for _, tick in counted}
    for cron, tick_ms in counted:
        stamp = datetime.fromtimestamp(tick_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
        job_id = f"cron-{cron.removeprefix('table:')}-{stamp}-1"
        record = await scripts.queue.record(job_id)
        assert record is not None
        assert record.state is JobState.WAITING
    assert (await scripts.lease.load())["jobs"] <= len(counted) + 2 * NUM_CRONS
    assert len(ticks) >= NUM_TICKS // NUM_CRONS


async def test_late_service_does_not_repeat_a_tick(client: AsyncClient, tmp_path: Path) -> None:
    """A tick that arq brings back after it ran, or an older one, submits nothing."""
    entry = Entry.model_validate(
        {"name": "n", "at": {"hour": 3}, "request": {"prompt": "x", "max_tokens": 4}}
    )
    crons = Crons(client, [], Timetable(), tmp_path)
    run = crons._entry(entry).coroutine
    for tick_ms in (2000, 2000, 1000):
        await run({"job_id": f"table:n:{tick_ms}"})
    assert (await client.scripts.lease.load())["jobs"] == 1


async def test_tick_that_was_cut_short_is_finished_under_the_same_ids(
    client: AsyncClient, tmp_path: Path
) -> None:
    """A service that dies between submitting and taking the tick leaves no second set of jobs."""
    (tmp_path / "texts.jsonl").write_text('{"prompt":"a"}\n\n{"prompt":"b"}\n')
    entry = Entry.model_validate({"name": "n", "at": {"hour": 3}, "requests": "texts.jsonl"})
    crons = Crons(client, [], Timetable(), tmp_path)
    await crons._submit(entry, 1000)
    await crons._entry(entry).coroutine({"job_id": "table:n:1000"})
    assert (await client.scripts.lease.load())["jobs"] == 2


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"hour": 3}, {"hour": {3}, "minute": 0, "second": 0}),
        ({"hour": 3, "minute": [0, 30]}, {"hour": {3}, "minute": {0, 30}, "second": 0}),
        ({"weekday": "mon"}, {"weekday": {0}, "hour": 0, "minute": 0, "second": 0}),
        ({"day": 1}, {"day": {1}, "hour": 0, "minute": 0, "second": 0}),
        ({"minute": 5}, {"minute": {5}, "second": 0}),
    ],
)
def test_times_left_out_below_are_zero(given: dict[str, object], wanted: dict[str, object]) -> None:
    """`{ hour = 3 }` is three o'clock, not every minute of the hour."""
    fields = At.model_validate(given).fields()
    assert {name: value for name, value in fields.items() if value is not None} == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("cron = 3", "cron"),
        ('[[cron]]\nname = "a"\nat = { hour = 24 }\nrequest = { prompt = "x" }', "hour"),
        ('[[cron]]\nname = "a"\nat = {}\nrequest = { prompt = "x" }', "at least one"),
        ('[[cron]]\nname = "a"\nat = { hour = 3 }', "exactly one"),
        ('[[cron]]\nname = "a"\nat = { hour = 3 }\nrequest = { promt = "x" }', "promt"),
        ('[[cron]]\nname = "a"\nat = { hour = 3 }\nrequests = "none.jsonl"', "none.jsonl"),
        ('timezone = "Mars/Olympus"', "Mars"),
        ("[[cron", "crons.toml"),
    ],
)
def test_wrong_table_stops_the_start(tmp_path: Path, text: str, why: str) -> None:
    """A table with a mistake is refused before anything runs, and the place is named."""
    path = tmp_path / "crons.toml"
    path.write_text(text)
    with pytest.raises(SettingsInvalid, match=why):
        Timetable.load(path)


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
    await dead.reconcile(ttl_ms=1)
    await dead.pull()
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
    scripts: Scripts, house: Housekeeping
) -> None:
    """A server that was away has dropped all leases: who renews within two of them is alive."""
    await submit(scripts, a_job("kept"))
    alive = StubWorker(scripts)
    await alive.reconcile(ttl_ms=1)
    await alive.pull()
    reaping = asyncio.create_task(house.reap())
    await alive.reconcile()
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
    """Autoscalers read tokens, rate and seconds; without a rate the seconds are unknown."""

    async def published() -> dict[str, object]:
        await house.publish_pressure()
        value: dict[str, object] = json.loads(await raw(scripts).get(scripts.keys.of("pressure")))
        return value

    assert (await published())["seconds"] == 0
    await submit(scripts, a_job("one"))
    waiting = await published()
    assert (waiting["waiting_jobs"], waiting["waiting_tokens"]) == (1, 48)
    assert waiting["seconds"] is None
    drain = scripts.keys.of("drain")
    await raw(scripts).hset(drain, mapping={"tokens": 1000, "busy": 10_000})
    assert (await published())["seconds"] == pytest.approx(0.48)
    assert await raw(scripts).pttl(scripts.keys.of("pressure")) > 0
