"""Watching a pool: jobs that ended are read once, and conditions say what needs a look."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec
from workers.staged_pool import StagedPool
from workers.stubs import StubWorker, a_job, raw, submit

from tokenbus.producer.client.watching.conditions import Level, conditions_of
from tokenbus.producer.client.watching.ended_jobs import MAX_ENDED, EndedJobs
from tokenbus.producer.client.watching.job_story import job_story
from tokenbus.producer.client.watching.pool_watch import PoolWatch, ServerMemory
from tokenbus.producer.gateway.board.watched_pools import NUM_STEPS, WatchedPools

if TYPE_CHECKING:
    import pytest

    from tokenbus.producer.scripts import Scripts


def row(number: int, ended_ms: int, reason: str = "stop", owners: int = 1) -> bytes:
    """Return a job that has ended, as the pool keeps it."""
    created = ended_ms - 1000
    pulls = " ".join(f"p{created + 100 + at}:w{at}" for at in range(owners))
    stamps = f"{pulls} a{created + 150} f{created + 200}"
    ends: list[object] = [created, ended_ms, reason, "", 10, 0, 9, 0, "w0", stamps, ""]
    return msgspec.msgpack.encode([1, f"job-{number}@acme", "acme", 1, *ends])


async def test_rows_are_read_once_however_many_come_between_two_looks(scripts: Scripts) -> None:
    """Each job is seen once: none new, a few, more than a first look reads, and after a flood."""
    redis, key = raw(scripts), scripts.keys.of("recent")
    ended = EndedJobs(scripts.redis, scripts.keys)
    await ended.read()
    assert not ended.jobs
    at = 0
    for number in (3, 0, 200, 1):
        if number:
            await redis.rpush(key, *(row(at + each, 5000 + at + each) for each in range(number)))
        at += number
        await ended.read()
        assert [job.job_id for job in ended.jobs] == [f"job-{each}" for each in range(at)]
    await redis.rpush(key, *(row(10_000 + each, 90_000 + each) for each in range(MAX_ENDED + 50)))
    await redis.lpop(key, at + 50)
    await ended.read()
    assert len(ended.jobs) == MAX_ENDED
    assert ended.jobs[-1].job_id == f"job-{10_000 + MAX_ENDED + 49}"


async def test_figures_are_of_the_last_minute(scripts: Scripts) -> None:
    """What ended before counts no more, and gaps of a job with two owners are left out."""
    rows = [row(0, 1_000_000), row(1, 1_050_000), row(2, 1_051_000, "failed")]
    rows.append(row(3, 1_052_000, owners=2))
    await raw(scripts).rpush(scripts.keys.of("recent"), *rows, b"\xc1 no row")
    ended = EndedJobs(scripts.redis, scripts.keys)
    await ended.read()
    figures = ended.figures(1_061_000)
    assert (figures.num_jobs, figures.reasons, figures.num_resumed) == (
        3,
        {"stop": 2, "failed": 1},
        1,
    )
    assert figures.latencies["ttft"].p50_ms == 200
    assert figures.latencies["itl"].count == 2
    assert figures.latencies["itl"].p50_ms == 100


async def test_server_that_lets_the_list_not_be_read_is_told(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the right to read it the page shows all else."""
    from redis.exceptions import NoPermissionError

    async def refuse(*_: Any) -> Any:
        raise NoPermissionError("NOPERM lrange")

    monkeypatch.setattr(scripts.redis, "lrange", refuse)
    sight = await PoolWatch(scripts.redis, scripts.keys).look()
    assert sight.has_ended is False


async def test_conditions_come_with_what_they_say_and_go_with_it(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool without a worker is bad, one that works says nothing, a full server is bad again."""
    watch = PoolWatch(scripts.redis, scripts.keys)
    [alone] = conditions_of(await watch.look())
    assert (alone.code, alone.level) == ("no_worker", Level.BAD)
    staged = StagedPool(scripts)
    await staged.add_workers(2)
    assert conditions_of(await watch.look()) == []
    await raw(scripts).rpush(
        scripts.keys.of("recent"), *(row(n, 2**45, "failed" if n < 3 else "stop") for n in range(9))
    )
    await raw(scripts).xadd(scripts.keys.of("suspects"), {"job": "x"})
    monkeypatch.setattr(watch, "_memory", ServerMemory(95, 100))
    monkeypatch.setattr(watch, "_memory_at", float("inf"))
    found = conditions_of(await watch.look())
    assert [each.code for each in found] == ["server_full", "suspects", "failures"]


async def test_lost_worker_matters_less_once_another_has_its_place(scripts: Scripts) -> None:
    """One that started after the loss stands for one that was lost, whoever lived before it."""
    staged = StagedPool(scripts)
    await staged.add_workers(2)
    watch = PoolWatch(scripts.redis, scripts.keys)
    now_ms = (await watch.look()).figures.at_ms
    # Staged workers have lived for half a day.
    lost = {"early": now_ms - 400_000, "late": now_ms - 300_000}
    await raw(scripts).zadd(scripts.keys.of("lost"), lost)
    found = conditions_of(await watch.look())
    assert [(each.code, each.level) for each in found] == [("worker_lost", Level.WARNING)] * 2
    status = json.loads(await raw(scripts).get(scripts.keys.of("status", staged.workers[0])))
    status["uptime_s"] = 350
    await raw(scripts).set(scripts.keys.of("status", staged.workers[0]), json.dumps(status))
    warning, note = conditions_of(await watch.look())
    assert (warning.level, note.level) == (Level.WARNING, Level.NOTE)
    assert "late" in warning.told
    assert "early" in note.told


async def test_worker_with_other_weights_is_told_and_one_that_tells_none_is_not(
    scripts: Scripts,
) -> None:
    """Most decide which are right; a name tells those apart that have no digest, and only them."""
    staged = StagedPool(scripts)
    await staged.add_workers(4)
    watch = PoolWatch(scripts.redis, scripts.keys)
    redis, keys = raw(scripts), scripts.keys

    async def tell(number: int, **told: str) -> None:
        key = keys.of("status", staged.workers[number])
        await redis.set(key, json.dumps(json.loads(await redis.get(key)) | told))

    await tell(0, checkpoint="aaaa")
    await tell(1, checkpoint="aaaa", model="another name of it")
    assert conditions_of(await watch.look()) == []
    await tell(2, checkpoint="bbbb")
    [found] = conditions_of(await watch.look())
    assert (found.code, found.level) == ("wrong_checkpoint", Level.BAD)
    assert staged.workers[2] in found.told
    assert staged.workers[0] not in found.told
    await tell(2, checkpoint="aaaa")
    await tell(3, model="another one")
    [found] = conditions_of(await watch.look())
    assert staged.workers[3] in found.told


async def test_client_that_does_not_read_is_told_by_what_waits_for_it(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server counts what it holds for its slowest client; a little is nothing to tell of."""
    await StagedPool(scripts).add_workers(1)
    watch = PoolWatch(scripts.redis, scripts.keys)
    monkeypatch.setattr("tokenbus.producer.client.watching.pool_watch._MEMORY_S", 0.0)
    real: Any = scripts.redis.info
    assert "client_recent_max_output_buffer" in await real("clients")

    for waiting, codes in ((2**20, []), (5 * 2**20, ["slow_client"])):

        async def info(*sections: str, waiting: int = waiting) -> Any:
            return await real(*sections) | {"client_recent_max_output_buffer": waiting}

        monkeypatch.setattr(scripts.redis, "info", info)
        assert [each.code for each in conditions_of(await watch.look())] == codes


async def test_past_is_told_by_what_ended_and_goes_on_with_what_is_seen(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps before the first look have jobs and no queue; later ones have both, each step once."""
    staged = StagedPool(scripts)
    await staged.add_workers(1)
    await staged.add_ended(300, 600)
    watched = WatchedPools()
    client: Any = type("Client", (), {"scripts": scripts})()
    await watched.sight(client)
    samples = list(watched.samples(client))
    assert len(samples) == NUM_STEPS
    assert [after.at_ms - before.at_ms for before, after in pairwise(samples)] == [5000] * (
        NUM_STEPS - 1
    )
    assert sum(sample.num_ended for sample in samples) >= 298
    assert all(sample.waiting_jobs is None for sample in samples[:-1])
    assert samples[-1].waiting_jobs == 0
    assert any(sample.ttft is not None for sample in samples)
    monkeypatch.setattr("tokenbus.producer.gateway.board.watched_pools._BELIEVED_S", -1.0)
    await watched.sight(client)
    times = [sample.at_ms for sample in watched.samples(client)]
    assert len(times) == len(set(times)) == NUM_STEPS


async def test_story_of_a_job_is_told_from_its_submit_to_past_its_end(scripts: Scripts) -> None:
    """A waiting job, one that runs, and one of which its row alone is left."""
    await submit(scripts, a_job("job@acme", deadline_ms=60_000))
    story = await job_story(scripts, "job", "acme", [], with_texts=False)
    assert story is not None
    assert (story.state, story.stamps, story.texts) == ("waiting", (), None)
    assert story.deadline_ms > story.created_ms > 0
    worker = StubWorker(scripts)
    await worker.reconcile()
    await worker.pull()
    await worker.start("job@acme", 1)
    await worker.append("job@acme", 1, 1, 2)
    story = await job_story(scripts, "job", "acme", [], with_texts=True)
    assert story is not None
    assert (story.state, story.owner, story.num_tokens) == ("held", worker.name, 2)
    assert story.texts is not None
    assert story.texts.answers == ("001 002 ",)
    await raw(scripts).rpush(scripts.keys.of("recent"), row(7, 9000))
    ended = EndedJobs(scripts.redis, scripts.keys)
    await ended.read()
    story = await job_story(scripts, "job-7", "acme", ended.jobs, with_texts=True)
    assert story is not None
    assert (story.state, story.ended_ms, len(story.stamps)) == ("done", 9000, 4)
    assert await job_story(scripts, "job-8", "acme", ended.jobs, with_texts=True) is None
