"""What finished jobs keep: their logs give way to results, and results to bounds in bytes."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from workers.stubs import (
    WIDE,
    StubWorker,
    a_job,
    num_ends,
    owned_end,
    pulled,
    raw,
    submit,
    tokens,
)

from tokenbus.producer.client.reading.lookup import Lookup
from tokenbus.producer.contract.result import JobResult
from tokenbus.producer.errors import JobDropped
from tokenbus.producer.scripts import Begin, End, Scripts, Takeover
from tokenbus.producer.scripts.completing import Completed, Retention
from tokenbus.producer.scripts.completion import JobCompletion
from tokenbus.producer.scripts.replies import JobState, LogReply, LogStatus, Refused, Submitted
from tokenbus.producer.scripts.source import read_part
from tokenbus.producer.server.connection import make_redis
from tokenbus.producer.server.embedded import start_private

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

J = "j-1"
# As lib/kept.lua counts them: what a job keeps beside its result, and a record that is left alone.
OVERHEAD, RECORD = 512, 384

in_both_ways = pytest.mark.parametrize("is_one_server", [True, False], ids=["in-turn", "in-steps"])


async def ended(scripts: Scripts, job_id: str, size: int = 0, **fields: Any) -> Completed:
    """Run a job to its end, its result filled up to `size` bytes; return what completes it."""
    await submit(scripts, a_job(job_id, **fields))
    worker = StubWorker(scripts)
    await worker.reconcile()
    await worker.pull()
    await worker.start(job_id, 1)
    await worker.append(job_id, 1, 1, 1)
    end = owned_end(job_id, 1, 1)
    filled = end.result.replace('"text":"001 "', f'"text":"{"x" * (size - len(end.result) + 4)}"')
    await scripts.log.end([End(job_id, 1, 1, end.finish, filled)])
    return Completed.of(job_id, end.finish)


async def sums(scripts: Scripts) -> dict[str, int]:
    """Return the sums of what is kept; each is that of its list."""
    redis, keys = raw(scripts), scripts.keys
    stored = await redis.hgetall(keys.of("kept"))
    told = {name.decode(): int(value) for name, value in stored.items()}
    lists: dict[str, int] = {}
    async for key in redis.scan_iter(keys.of("kept_of", "*")):
        entries = [entry.decode().split(" ") for entry in await redis.lrange(key, 0, -1)]
        lists["of:" + key.decode().removeprefix(keys.of("kept_of"))] = sum(
            int(size) for _, size, _ in entries
        )
    assert {name: size for name, size in told.items() if name.startswith("of:")} == lists
    assert told["bytes"] == sum(lists.values())
    return told


async def is_kept(scripts: Scripts, job_id: str) -> bool:
    """Tell whether a job's result can be read; if not, its record says so for sure."""
    known = await Lookup(scripts).look(job_id, 0)
    if known.record is None:
        assert known.result is None
        return False
    assert known.record.state is JobState.DONE
    try:
        is_whole = known.result is not None and bool(JobResult.parse(known.result).text)
    except JobDropped:
        is_whole = False
    assert is_whole is not known.record.is_dropped
    return is_whole


async def test_result_takes_the_place_of_a_finished_log(scripts: Scripts) -> None:
    """Whoever comes too late for the log is answered as the log's end would have answered.

    A worker that was paused, one that reaps late, and one that would start the job anew: none of
    them writes another word.
    """
    worker = await pulled(scripts, J)
    await worker.run(J, 1, 2)
    end = owned_end(J, 1, 2)
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "owner": lambda: worker.start(J, 1),
        "heir": lambda: worker.start(J, 2),
        "beginner": lambda: _begin(scripts, worker.name),
        "append": lambda: worker.append(J, 1, 3, 3),
        "fenced append": lambda: worker.append(J, 2, 3, 3),
        "end": lambda: worker.end(J, 1, 2),
        "fenced end": lambda: worker.end(J, 2, 2),
    }
    before = {name: await call() for name, call in calls.items()}
    [unowned] = await scripts.log.end([End(J, 5, 0, end.finish, end.result, owned=False)])
    await JobCompletion(scripts).complete(J, end.finish)
    assert await raw(scripts).exists(scripts.keys.log(J)) == 0
    for name, call in calls.items():
        assert await call() == before[name], name
    assert before["heir"].status is LogStatus.TERMINAL
    late = End(J, 5, 0, end.finish, "{}", owned=False)
    assert await scripts.log.end([late]) == [unowned]
    assert await raw(scripts).exists(scripts.keys.log(J)) == 0
    assert await num_ends(scripts, J) == 1


async def _begin(scripts: Scripts, worker: str) -> LogReply:
    item = Begin(J, 1, "1", [tokens(J, 1, 1, 2)], owned_end(J, 1, 2))
    [reply] = await scripts.log.begin([item], worker)
    return reply


@pytest.mark.parametrize(
    "text", ['"', '\\",\\"finish\\":{', "],[0,9,99]]", ',"runs":[[0,1,9]]', "é\\u0000"]
)
async def test_end_is_found_in_a_result_whatever_its_text(scripts: Scripts, text: str) -> None:
    """Texts that look like names of the result are texts."""
    worker = await pulled(scripts, J)
    await worker.start(J, 1)
    await scripts.log.append([tokens(J, 1, 1, 2)])
    result = JobResult.parse(owned_end(J, 1, 2).result)
    [choice] = result.choices
    told = replace(result, choices=(replace(choice, text=text),))
    finish = owned_end(J, 1, 2).finish
    await scripts.log.end([End(J, 1, 2, finish, told.dump())])
    await JobCompletion(scripts).complete(J, finish)
    reply = await worker.start(J, 7)
    assert (reply.status, reply.epoch, reply.last, reply.finish) == (
        LogStatus.TERMINAL, 1, 2, finish,
    )  # fmt: skip


async def test_logprobs_of_a_prompt_are_not_taken_for_indices(scripts: Scripts) -> None:
    """An end without tokens is behind index 0, whatever its result says of the prompt."""
    worker = await pulled(scripts, J)
    await worker.start(J, 1)
    end = owned_end(J, 1, 0)
    told = replace(JobResult.parse(end.result), prompt_logprobs=(None, ((7, -0.5),), ((9, 99),)))
    await scripts.log.end([End(J, 1, 0, end.finish, told.dump())])
    await JobCompletion(scripts).complete(J, end.finish)
    assert ']],"finish"' in told.dump()
    assert (await worker.start(J, 1)).last == 0


async def test_log_that_goes_while_it_is_read_is_none(scripts: Scripts) -> None:
    """A job is completed between two pages of its log: half of it would be a hole for a reader."""
    worker = await pulled(scripts, J)
    await worker.start(J, 1)
    for first in range(1, 600, 100):
        await scripts.log.append([tokens(J, 1, n, n) for n in range(first, first + 100)])
    whole = await scripts.log.events(J)
    assert whole is not None
    assert len(whole) == 600
    runner: Any = scripts.log._runner
    command = runner.command

    async def completed_after(*args: str | int) -> Any:
        page = await command(*args)
        if not await raw(scripts).exists(scripts.keys.result(J)):
            await worker.end(J, 1, 600)
            await JobCompletion(scripts).complete(J, owned_end(J, 1, 600).finish)
        return page

    with patch.object(runner, "command", completed_after):
        assert await scripts.log.events(J) is None
    known = await Lookup(scripts).look(J, 0)
    assert known.result is not None


@in_both_ways
async def test_oldest_results_are_dropped_past_a_bound(
    scripts: Scripts, is_one_server: bool
) -> None:
    """Of the tenant over its bound, and of the pool; who asks is told, and is not run again."""
    scripts.completion.is_one_server = is_one_server
    size = 1000
    room = 4 * (size + OVERHEAD)
    completion = JobCompletion(scripts, Retention(pool_bytes=2 * room, tenant_bytes=room))
    names = [f"s{n % 3}-{n}" for n in range(6)]
    for name in names:
        await completion.complete_many([await ended(scripts, name, size, tenant="big")])
    assert [await is_kept(scripts, name) for name in names] == [False] * 2 + [True] * 4
    again = await scripts.queue.submit(a_job(names[0], tenant="big"), WIDE)
    assert isinstance(again, Submitted)
    assert again.place.state is JobState.DONE
    for number in range(4):
        tenant = f"t{number}"
        await completion.complete_many([await ended(scripts, f"x{number}", size, tenant=tenant)])
    assert not await is_kept(scripts, names[2])
    assert await is_kept(scripts, "x0")
    told = await sums(scripts)
    assert told["bytes"] + RECORD * await raw(scripts).llen(scripts.keys.of("dropped")) <= 2 * room


async def test_bounds_hold_whatever_is_completed(scripts: Scripts) -> None:
    """Any sizes, tenants and batches: the sums are right, and only the newest may be too large."""
    chance = random.Random(5)
    pool, own = 40_000, 15_000
    completion = JobCompletion(scripts, Retention(pool_bytes=pool, tenant_bytes=own))
    names: list[str] = []
    for _ in range(12):
        batch = []
        for _ in range(chance.randrange(1, 6)):
            names.append(f"s{chance.randrange(2)}-{len(names)}")
            size = chance.choice((500, 2000, 9000, 30_000))
            batch.append(await ended(scripts, names[-1], size, tenant=f"t{chance.randrange(3)}"))
        assert not any(await completion.complete_many(batch))
        told = await sums(scripts)
        dropped = await raw(scripts).llen(scripts.keys.of("dropped"))
        if told["bytes"] + dropped * RECORD > pool:
            assert await raw(scripts).zcard(scripts.keys.of("kept_first")) == 1
        for tenant in ("t0", "t1", "t2"):
            key = scripts.keys.of("kept_of", tenant)
            assert told.get(f"of:{tenant}", 0) <= own or await raw(scripts).llen(key) == 1
    kept = [await is_kept(scripts, name) for name in names]
    assert kept[-1]
    assert not all(kept)


async def test_results_whose_time_is_over_are_counted_no_more(scripts: Scripts) -> None:
    """They leave the lists with the next completion of anybody; nothing is dropped for them."""
    brief = JobCompletion(scripts, Retention(log_ms=1, result_ms=1))
    await brief.complete_many([await ended(scripts, J, tenant="a")])
    keys, redis = scripts.keys, raw(scripts)
    [entry] = await redis.lrange(keys.of("kept_of", "a"), 0, -1)
    when, rest = entry.split(b" ", 1)
    await redis.lset(keys.of("kept_of", "a"), 0, b"%d %s" % (int(when) - 9_000_000, rest))
    await redis.zadd(keys.of("kept_first"), {"a": int(when) - 9_000_000})
    await JobCompletion(scripts).complete_many([await ended(scripts, "j-2", tenant="b")])
    told = await sums(scripts)
    assert "of:a" not in told
    assert await redis.llen(keys.of("dropped")) == 0


async def test_list_that_has_expired_is_counted_no_more(scripts: Scripts) -> None:
    """The sums follow a tenant's list that went with its TTL."""
    for number in range(2):
        job = await ended(scripts, f"a{number}", tenant="a")
        await JobCompletion(scripts).complete_many([job])
    await raw(scripts).delete(scripts.keys.of("kept_of", "a"))
    bounded = JobCompletion(scripts, Retention(pool_bytes=1500))
    await bounded.complete_many([await ended(scripts, "b0", tenant="b")])
    assert set(await sums(scripts)) == {"bytes", "pool", "tenant", "ttl", "of:b"}


async def test_records_of_dropped_results_take_a_quarter_of_the_bound(scripts: Scripts) -> None:
    """Then the oldest are forgotten with their idempotency keys, though none of a moment ago."""
    keys, redis = scripts.keys, raw(scripts)
    bound = 4 * 3 * RECORD
    bounded = JobCompletion(scripts, Retention(pool_bytes=bound, tenant_bytes=0))
    for number in range(8):
        job = await ended(scripts, f"j{number}", 2000, idempotency=f"idem{number}")
        await bounded.complete_many([job])
    dropped = await redis.lrange(keys.of("dropped"), 0, -1)
    assert dropped == [b"j%d" % number for number in range(7)]
    for number in range(7):
        await redis.hincrby(keys.of("job", f"j{number}"), "dropped", -30_001)
    for number in range(8, 11):
        await bounded.complete_many([await ended(scripts, f"j{number}", 2000)])
    dropped = await redis.lrange(keys.of("dropped"), 0, -1)
    assert dropped == [b"j%d" % number for number in range(6, 10)]
    for number in range(8):
        record = await scripts.queue.record(f"j{number}")
        is_known = number > 5
        assert (record is not None) is is_known
        assert await redis.exists(keys.of("idem", f"idem{number}")) == is_known


async def test_client_that_keeps_for_seconds_leaves_the_lists_alone(scripts: Scripts) -> None:
    """What a worker's completions keep counts for as long as the worker keeps it."""
    workers = JobCompletion(scripts, Retention(pool_bytes=10**6, tenant_bytes=10**6))
    await workers.complete_many([await ended(scripts, "j0")])
    told = await sums(scripts)
    await raw(scripts).zincrby(scripts.keys.of("kept_first"), -10_000, "acme")
    brief = JobCompletion(scripts, Retention(log_ms=1, result_ms=1))
    await brief.complete_many([await ended(scripts, "j1", tenant="other")])
    assert (await sums(scripts))["of:acme"] == told["of:acme"]


async def test_name_that_is_another_jobs_by_now_is_left_alone(scripts: Scripts) -> None:
    """What once was dropped under a name deletes no record of a job that lives under it."""
    await submit(scripts, a_job(J))
    await raw(scripts).rpush(scripts.keys.of("dropped"), *[J] * 8)
    bounded = JobCompletion(scripts, Retention(pool_bytes=1500))
    for number in range(3):
        await bounded.complete_many([await ended(scripts, f"b{number}", tenant="b")])
    record = await scripts.queue.record(J)
    assert record is not None
    assert record.state is not JobState.DONE


async def test_unbounded_pool_keeps_everything(scripts: Scripts) -> None:
    """A bound of 0 is none; a client without bounds leaves those that a worker has set."""
    unbounded = JobCompletion(scripts, Retention(pool_bytes=0, tenant_bytes=0))
    for number in range(3):
        await unbounded.complete_many([await ended(scripts, f"a{number}", 3000)])
    await JobCompletion(scripts).complete_many([await ended(scripts, "a3", 3000)])
    assert all([await is_kept(scripts, f"a{number}") for number in range(4)])
    assert (await sums(scripts))["pool"] == 0


@pytest.mark.parametrize("is_bounded", [True, False], ids=["bounded", "unbounded"])
async def test_full_of_the_past_a_server_takes_new_jobs(is_bounded: bool) -> None:
    """A server with little memory goes on accepting while the past is bounded, and no longer."""
    server = start_private()
    try:
        redis: Any = make_redis(f"unix://{server.socket_path}")
        scripts = Scripts(redis, "small")
        used = (await redis.info("memory"))["used_memory"]
        await redis.config_set("maxmemory", used + 4_000_000)
        keep = Retention(pool_bytes=1_000_000 if is_bounded else 0, tenant_bytes=0)
        completion, num_refused = JobCompletion(scripts, keep), 0
        worker = StubWorker(scripts)
        await worker.reconcile()
        for _ in range(30):
            replies = await scripts.queue.submit_many([a_job() for _ in range(32)], WIDE)
            num_refused += sum(isinstance(reply, Refused) for reply in replies)
            jobs = (await worker.pull()).jobs
            await scripts.log.takeover([Takeover(job.job_id, 1, worker.name) for job in jobs])
            ends = [replace(owned_end(job.job_id, 1, 0), result=_large(job.job_id)) for job in jobs]
            await scripts.log.end(ends)
            done = [Completed.of(end.job_id, end.finish) for end in ends]
            assert not any(await completion.complete_many(done))
        await redis.aclose()
    finally:
        server.close()
    assert (num_refused == 0) is is_bounded


def _large(job_id: str) -> str:
    return owned_end(job_id, 1, 0).result.replace('"text":""', f'"text":"{"x" * 8000}"')


def test_the_test_counts_as_the_script_does() -> None:
    """The figures of this file are those of the library."""
    assert f"local OVERHEAD, RECORD = {OVERHEAD}, {RECORD}\n" in read_part("lib/kept").body
