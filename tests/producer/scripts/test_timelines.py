"""Timelines: the stamps of a job, and what the pool remembers of those that have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.stubs import StubWorker, a_job, raw, submit

from tokenbus.producer.scripts.completing import Completed
from tokenbus.producer.scripts.evidence import Crash
from tokenbus.producer.scripts.replies import PullStatus
from tokenbus.producer.scripts.timeline import EndedJob, Stamp, lived_text, parse_stamps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.completion import JobCompletion

DONE = '{"reason":"stop","usage":{"prompt_tokens":32,"cached_tokens":16,"completion_tokens":3}}'


async def stamps(scripts: Scripts, job_id: str) -> tuple[Stamp, ...]:
    """Return the stamps of a record."""
    found = await raw(scripts).hget(scripts.keys.of("job", job_id), "stamps")
    return parse_stamps((found or b"").decode())


async def ended(scripts: Scripts) -> list[EndedJob]:
    """Return the jobs that the pool remembers, the oldest first."""
    rows = await raw(scripts).lrange(scripts.keys.of("recent"), 0, -1)
    found = [EndedJob.parse(row) for row in rows]
    assert None not in found
    return [row for row in found if row is not None]


def kinds(timeline: Sequence[Stamp]) -> str:
    """Return the kinds of stamps, and check that their times do not go back."""
    times = [stamp.at_ms for stamp in timeline]
    assert times == sorted(times)
    return "".join(stamp.kind for stamp in timeline)


async def test_timeline_tells_every_owner_and_why_it_lost_the_job(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """A job that is parked, outlives its worker and ends has a stamp for each of these."""
    first, second = StubWorker(scripts), StubWorker(scripts)
    for worker in (first, second):
        await worker.reconcile()
    await submit(scripts, a_job("job"))
    await first.pull()
    await scripts.lease.requeue(
        first.name, "job", 1, num_logged=2, why="parked", lived=lived_text(0.0, 0.0)
    )
    await second.pull()
    await second.start("job", 2)
    await second.die()
    [orphan] = await scripts.lease.scan()
    await scripts.lease.requeue(
        second.name, "job", orphan.epoch, num_logged=2, crash=Crash(cause="worker")
    )
    await first.pull()
    done = Completed.of("job", DONE, lived=lived_text(0.0, None))
    assert await completion.complete_many([done]) == [""]
    [job] = await ended(scripts)
    assert kinds(job.stamps).translate({ord("a"): None}) == "pfbpbpe"
    pulls = [stamp.worker for stamp in job.stamps if stamp.kind == "p"]
    assert pulls == [first.name, second.name, first.name]
    assert [(s.why, s.logged) for s in job.stamps if s.kind == "b"] == [
        ("parked", 2),
        ("worker", 2),
    ]
    assert (job.job_id, job.reason, job.owner, job.num_owners) == ("job", "stop", first.name, 3)
    assert (job.prompt_tokens, job.cached_tokens, job.output_tokens) == (32, 16, 3)
    assert job.bound_tokens == 16
    assert job.queue_ms is not None
    assert job.ttft_ms is not None
    assert job.itl_ms is None, "gaps of several owners are no gaps between tokens"


async def test_delayed_job_counts_from_its_release(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """A delay that a client has asked for is no time in the queue."""
    worker = StubWorker(scripts)
    await worker.reconcile()
    await submit(scripts, a_job("later", not_before_ms=60_000))
    # As if its time had come.
    await raw(scripts).zadd(scripts.keys.of("due"), {"n:later": 1})
    key = scripts.keys.of("job", "later")
    created = int(await raw(scripts).hget(key, "created"))
    await raw(scripts).hset(key, "created", created - 60_000)
    await scripts.queue.tick()
    await worker.pull()
    await completion.complete_many([Completed.of("later", DONE)])
    [job] = await ended(scripts)
    assert kinds(job.stamps) == "rpe"
    assert job.queue_ms is not None
    assert job.queue_ms < 60_000


async def test_ends_without_an_owner_are_remembered_and_forged_entries_are_not(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """A cancelled job is in the list; what never was a job is not."""
    await submit(scripts, a_job("gone", priority=2))
    assert await completion.cancel("gone") == "ended"
    await raw(scripts).xadd(scripts.keys.of("inbox2"), {"job": "{"})
    entry = (await raw(scripts).xrange(scripts.keys.of("inbox2")))[0][0].decode()
    await scripts.queue.reject(entry, "refused-1", '{"reason":"failed"}', b"{")
    await completion.tick()
    [job] = await ended(scripts)
    assert (job.job_id, job.reason, job.priority, job.owner) == ("gone", "cancelled", 2, "")
    assert kinds(job.stamps) == "e"


async def test_error_is_remembered_by_its_code_alone(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """Nothing of a tenant's text lies in the list, whatever a message quotes."""
    worker = StubWorker(scripts)
    await worker.reconcile()
    await submit(scripts, a_job("job", request='{"v":1,"prompt":"my secret"}'))
    await worker.pull()
    error = '{"code":"grammar","field":null,"message":"my secret \\"error\\":{\\"code\\":\\"x\\"}"}'
    finish = '{"reason":"failed","usage":{},"choices":[],"error":' + error + "}"
    done = Completed("job", finish, failed=True)
    assert await completion.complete_many([done]) == [""]
    [row] = await raw(scripts).lrange(scripts.keys.of("recent"), 0, -1)
    assert b"secret" not in row
    [job] = await ended(scripts)
    assert (job.reason, job.code) == ("failed", "grammar")


async def test_list_and_stamps_are_bounded(scripts: Scripts, completion: JobCompletion) -> None:
    """A job that changes hands for ever keeps a short record, and the list its newest jobs."""
    worker = StubWorker(scripts)
    await worker.reconcile()
    await submit(scripts, a_job("job"))
    for _ in range(60):
        [job] = (await worker.pull()).jobs
        await scripts.lease.requeue(worker.name, "job", job.epoch, why="parked")
    text = await raw(scripts).hget(scripts.keys.of("job", "job"), "stamps")
    assert len(text) < 1200
    found = parse_stamps(text.decode())
    assert sum(stamp.kind == "+" for stamp in found) >= 1
    assert found[0].kind == "p"
    assert found[-1].why == "parked"
    key = scripts.keys.of("recent")
    await raw(scripts).rpush(key, *(b"old" for _ in range(2200)))
    [job] = (await worker.pull()).jobs
    await completion.complete_many([Completed.of("job", DONE)])
    assert await raw(scripts).llen(key) == 2000
    assert await raw(scripts).pttl(key) > 0
    newest = await raw(scripts).lindex(key, -1)
    assert EndedJob.parse(newest) is not None
    assert EndedJob.parse(b"old") is None


async def test_drained_worker_takes_nothing_until_it_is_told_to(scripts: Scripts) -> None:
    """It keeps what it holds, wakes others for what waits, and is no home of prefixes."""
    worker, other = StubWorker(scripts), StubWorker(scripts)
    for each in (worker, other):
        await each.reconcile()
    await submit(scripts, a_job("held", prefix="p1"))
    await worker.pull(affinity_ms=60_000)
    since = await scripts.control.drain(worker.name, is_drained=True)
    assert since is not None
    assert await scripts.control.drain(worker.name, is_drained=True) == since
    await submit(scripts, a_job("next", prefix="p1"))
    bell = scripts.keys.of("bell")
    await raw(scripts).delete(bell)
    answer = await worker.pull(affinity_ms=60_000)
    assert (answer.status, answer.jobs) == (PullStatus.FULL, ())
    assert answer.retry_ms > 0
    assert await raw(scripts).llen(bell) == 1, "the bell that it may have had rings again"
    assert [job.job_id for job in (await other.pull(affinity_ms=60_000)).jobs] == ["next"]
    assert await scripts.control.drain("nobody", is_drained=True) is None
    assert await scripts.control.drain(worker.name, is_drained=False) is None
    await submit(scripts, a_job("third"))
    assert [job.job_id for job in (await worker.pull()).jobs] == ["third"]


def test_stamps_of_later_releases_are_left_out() -> None:
    """What a reader does not know it does not guess."""
    found = parse_stamps("p12:w-1 z13 b14:parked:7 b15 f x + e16")
    assert [(stamp.kind, stamp.at_ms, stamp.why, stamp.logged) for stamp in found] == [
        ("p", 12, "", 0),
        ("b", 14, "parked", 7),
        ("b", 15, "", 0),
        ("+", 0, "", 0),
        ("e", 16, "", 0),
    ]


async def test_worker_that_vanished_is_remembered_and_one_that_left_is_not(
    scripts: Scripts,
) -> None:
    """A scan notes since when a worker is gone, unless it held nothing and had said good-bye."""
    names = {}
    for name in ("idle", "held", "left"):
        worker = names[name] = StubWorker(scripts)
        await worker.reconcile()
    await submit(scripts, a_job("job"))
    await names["held"].pull()
    await scripts.lease.leave(names["left"].name)
    for worker in names.values():
        await worker.die()
    await scripts.lease.scan()
    key = scripts.keys.of("lost")
    first = dict(await raw(scripts).zrange(key, 0, -1, withscores=True))
    assert {name.decode() for name in first} == {names["idle"].name, names["held"].name}
    await scripts.lease.scan()
    assert dict(await raw(scripts).zrange(key, 0, -1, withscores=True)) == first
    assert await raw(scripts).pttl(key) > 0
