"""The figures of a pool: sums that add up, at a cost that no backlog raises."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from workers.staged_pool import StagedPool
from workers.stubs import StubWorker, a_job, raw, submit

from tokenbus.producer.client.backlog import Assumed
from tokenbus.producer.client.pool_figures import read_figures
from tokenbus.producer.client.pool_status import MAX_TENANTS, read_status
from tokenbus.producer.client.worker_status import LatencyFigures, PageFigures, WorkerPhase

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts


async def test_jobs_are_counted_by_priority_and_tenant(scripts: Scripts) -> None:
    """Waiting and held jobs stand in their priority and lane, tokens as the queue counts them.

    Shares of a tenant are the tenant's.
    """
    worker = StubWorker(scripts)
    await worker.reconcile()
    await submit(scripts, a_job("held", priority=0))
    await worker.pull()
    await submit(
        scripts,
        a_job("one"),
        a_job("two@acme/3f", tenant="acme/3f"),
        a_job("three@shop/01", tenant="shop/01", priority=2),
    )
    figures = await read_figures(scripts.redis, scripts.keys)
    assert [(p.waiting_jobs, p.waiting_tokens, p.held_jobs) for p in figures.priorities] == [
        (0, 0, 1),
        (2, 96, 0),
        (1, 48, 0),
    ]
    assert [(e.priority, e.tenant, e.waiting_jobs, e.held_jobs) for e in figures.lanes] == [
        (0, "acme", 0, 1),
        (1, "acme", 2, 0),
        (2, "shop", 1, 0),
    ]
    assert figures.tenant_waiting_tokens == {"acme": 96, "shop": 48}
    assert figures.priorities[0].oldest_age_s is None
    assert figures.oldest_age_s == max(p.oldest_age_s or 0 for p in figures.priorities) >= 0
    assert figures.at_ms > 0


async def test_backlog_is_counted_by_the_last_rate_and_before_it_by_the_assumed_one(
    scripts: Scripts,
) -> None:
    """No worker lives, and the seconds are a number all the same."""
    await submit(scripts, a_job("one"))
    before = await read_figures(scripts.redis, scripts.keys, assumed=Assumed(24, start_s=10))
    assert (before.drain_tokens_per_s, before.seconds_of_backlog) == (None, 12.0)
    drain = scripts.keys.of("drain")
    await raw(scripts).hset(drain, mapping={"tokens": 1000, "busy": 10_000, "model": "m"})
    after = await read_figures(scripts.redis, scripts.keys, assumed=Assumed(24, start_s=10))
    assert after.drain_tokens_per_s == pytest.approx(100)
    # A prompt's 32 tokens are as long as two that are generated.
    assert after.seconds_of_backlog == pytest.approx(0.18)
    assert after.model == "m"


async def test_rate_is_that_of_the_workers_there_are(scripts: Scripts) -> None:
    """A second worker halves the seconds at once; without any they are those of the last two."""
    await hundred_pulled(scripts, workers=2)
    await submit(scripts, a_job("one"))
    # Work of eighteen, of which a worker does fifty a second.
    for number, seconds in {0: 0.18, 1: 0.36, 2: 0.18}.items():
        await StagedPool(scripts).add_workers(number)
        figures = await read_figures(scripts.redis, scripts.keys)
        assert figures.seconds_of_backlog == pytest.approx(seconds), number
        assert figures.worker_seconds_of_backlog == pytest.approx(0.36)
    assert figures.drain_tokens_per_s == pytest.approx(200)


async def hundred_pulled(scripts: Scripts, **changed: float) -> None:
    """Let a hundred jobs of twenty tokens, half in prompts, be pulled, and fifty have left."""
    drain = {"tokens": 2000, "prompts": 1066.667, "pulled": 100, "jobs": 50, "busy": 10_000}
    await raw(scripts).hset(scripts.keys.of("drain"), mapping=drain | changed)


async def test_worker_that_starts_counts_from_its_readiness_on(scripts: Scripts) -> None:
    """It takes as many jobs as a full one holds at once, and has the rate of the others then.

    Where none lives and none starts, one would have to start now.
    """
    await hundred_pulled(scripts, workers=1, full=10, start_s=60.0)
    await submit(scripts, *(a_job(f"j{number}") for number in range(100)))

    async def seconds() -> float:
        return (await read_figures(scripts.redis, scripts.keys)).seconds_of_backlog

    # Work of 1800: a start, seats for ten jobs of ten, and the rest at fifty a second.
    assert await seconds() == pytest.approx(60 + 1700 / 50)
    told = {"v": 1, "phase": "starting", "uptime_s": 50.0, "ready": False}
    await raw(scripts).set(scripts.keys.of("status", "new"), json.dumps(told))
    await raw(scripts).sadd(scripts.keys.of("starting"), "new")
    assert await seconds() == pytest.approx(10 + 1700 / 50)
    await StagedPool(scripts).add_workers(1)
    assert await seconds() == pytest.approx(10 + (1800 - 500 - 100) / 100)
    # One that takes longer than the last might be ready at any moment.
    told["uptime_s"] = 70.0
    await raw(scripts).set(scripts.keys.of("status", "new"), json.dumps(told))
    assert await seconds() == pytest.approx(1700 / 100)
    # It has its lease, and has told nothing since.
    await raw(scripts).sadd(scripts.keys.of("workers"), "new")
    await raw(scripts).set(scripts.keys.of("alive", "new"), 16_000, px=60_000)
    assert await seconds() == pytest.approx(1800 / 100)
    # What leaves takes nothing more.
    await raw(scripts).set(
        scripts.keys.of("status", "new"), json.dumps(told | {"phase": "draining"})
    )
    assert await seconds() == pytest.approx(1800 / 50)
    figures = await read_figures(scripts.redis, scripts.keys)
    assert figures.worker_seconds_of_backlog == pytest.approx(1800 / 50)


async def test_seats_tell_when_the_last_job_is_begun_where_jobs_use_their_bounds(
    scripts: Scripts,
) -> None:
    """By since when each job runs and how long those before did: real pulls, ends made up.

    Where the user may not read what ended, by the rate.
    """
    await hundred_pulled(scripts, workers=1, start_s=60.0)
    await submit(scripts, *(a_job(f"j{number}", output_tokens=100) for number in range(20)))
    worker = StubWorker(scripts)
    await worker.reconcile()
    # Four seats, taken by three and one; the fourth job has run for 6 s, of 10.
    pulled = [job.job_id for size in (3, 1) for job in (await worker.pull(max_jobs=size)).jobs]
    now_ms = (await read_status(scripts.redis, scripts.keys)).at_ms
    for job_id, ago_ms in zip(pulled, (0, 0, 0, 6000), strict=True):
        stamps = f"p{now_ms - 90_000}:gone p{now_ms - ago_ms}:w"
        await raw(scripts).hset(scripts.keys.of("job", job_id), "stamps", stamps)
    await raw(scripts).rpush(scripts.keys.of("recent"), *ended_rows(now_ms, lasted_ms=10_000))
    figures = await read_figures(scripts.redis, scripts.keys)
    # Sixteen wait: one is begun after 4 s, three after 10, as many every 10 s, the last after 40.
    since_s = (figures.at_ms - now_ms) / 1000
    assert figures.seconds_of_backlog == pytest.approx(40 - since_s, abs=1)
    # A seat has fallen free since the worker left others waiting.
    await raw(scripts).hdel(scripts.keys.of("held", worker.name), pulled[0])
    figures = await read_figures(scripts.redis, scripts.keys)
    assert figures.seats is not None
    assert (figures.seats.num_held, figures.seats.num_free) == (3, 1)
    # Rows of an earlier release tell no bound, and others ran where nobody waited.
    await raw(scripts).delete(scripts.keys.of("recent"))
    rows = [*ended_rows(now_ms, waited_ms=5), *ended_rows(now_ms, bound=())]
    await raw(scripts).rpush(scripts.keys.of("recent"), *rows)
    figures = await read_figures(scripts.redis, scripts.keys)
    assert figures.seats is None
    assert figures.rate is not None
    assert figures.seconds_of_backlog == pytest.approx(16 * 102 / figures.rate.work_per_s)


def ended_rows(
    now_ms: int, *, lasted_ms: int = 10_000, waited_ms: int = 500, bound: tuple[int, ...] = (100,)
) -> list[bytes]:
    """Return ten jobs of 100 tokens that have ended, as the pool keeps them."""
    pulled = now_ms - lasted_ms
    ends = [pulled - waited_ms, now_ms, "length", "", 32, 0, 100, 0, "w", f"p{pulled}:w", ""]
    return [msgspec.msgpack.encode([1, f"e{at}", "acme", 1, *ends, *bound]) for at in range(10)]


async def test_calm_after_a_backlog_forgets_no_rate(scripts: Scripts) -> None:
    """The next backlog begins at the rate of the last, however long ago that was."""
    await hundred_pulled(scripts, workers=1)
    drain = scripts.keys.of("drain")
    worker = StubWorker(scripts)
    await worker.reconcile()
    await submit(scripts, *(a_job(f"j{number}") for number in range(9)))
    now_ms = (await read_status(scripts.redis, scripts.keys)).at_ms
    await raw(scripts).hset(drain, mapping={"at": now_ms - 3_600_000, "turned": 1})
    for _ in range(2):
        [job] = (await worker.pull(max_jobs=1)).jobs
        await raw(scripts).hdel(scripts.keys.of("held", worker.name), job.job_id)
    await worker.pull(max_jobs=1)
    assert float(await raw(scripts).hget(drain, "busy")) > 5000
    assert (await read_figures(scripts.redis, scripts.keys)).rate is not None


async def test_delayed_jobs_are_backlog_from_the_minute_on_in_which_they_are_due(
    scripts: Scripts,
) -> None:
    """Before it they wait, and nobody is called for them; one that is cancelled leaves nothing."""

    async def seconds() -> float:
        return (await read_figures(scripts.redis, scripts.keys, assumed=Assumed(48, start_s=0))
            ).seconds_of_backlog  # fmt: skip

    later = scripts.keys.of("later")
    await submit(scripts, a_job("now"), *(a_job(f"d{n}", not_before_ms=120_000) for n in range(2)))
    assert await seconds() == 1
    assert await raw(scripts).pttl(later) > 120_000
    await scripts.queue.cancel("d0")
    counts = await raw(scripts).hgetall(later)
    assert {field.split(b":")[0]: int(count) for field, count in counts.items()} == {
        b"tokens": 48,
        b"prompts": 32,
        b"jobs": 1,
    }
    assert await seconds() == 1
    # As if it were later: the minute has come, then a worker has released the job.
    now_ms = (await read_status(scripts.redis, scripts.keys)).at_ms
    await raw(scripts).delete(later)
    minute = now_ms // 60_000
    await raw(scripts).hset(later, mapping={f"tokens:{minute}": 48, f"jobs:{minute}": 1})
    assert await seconds() == 2
    due = scripts.keys.of("due")
    await raw(scripts).zadd(due, {"n:d1": now_ms})
    await scripts.queue.tick()
    assert await raw(scripts).hgetall(later) == {}
    assert await seconds() == 2


async def test_workers_tell_their_phase_and_their_pages(scripts: Scripts) -> None:
    """One that pulls and one that loads its model are shown, the pages of both places add up."""
    worker = StubWorker(scripts)
    await worker.reconcile()
    engine = {"free_pages": 30, "evictable_pages": 20, "shared_pages": 8, "num_running": 4}
    told: dict[str, Any] = {"v": 1, "model": "m", "total_pages": 100, "version": "0.1"}
    told |= {"ready": True, "phase": "draining", "engine": engine, "tokens_per_s": 7.5}
    told |= {"latencies": {"ttft": [10.0, 20.0, 3]}}
    await raw(scripts).set(scripts.keys.of("status", worker.name), json.dumps(told))
    await raw(scripts).sadd(scripts.keys.of("starting"), "new", "gone")
    starting = {"v": 1, "phase": "starting", "phase_told": "reading weights", "percent": 40}
    await raw(scripts).set(scripts.keys.of("status", "new"), json.dumps(starting))
    figures = await read_figures(scripts.redis, scripts.keys)
    assert figures.status.workers == (worker.name,)
    assert [(each.phase, each.phase_told, each.percent) for each in figures.workers] == [
        (WorkerPhase.DRAINING, "", 0),
        (WorkerPhase.STARTING, "reading weights", 40),
    ]
    assert figures.pages == PageFigures(free=30, cached=20, shared=8, held=42)
    assert figures.workers[0].latencies == {"ttft": LatencyFigures(10.0, 20.0, 3)}
    assert (figures.generated_tokens_per_s, figures.model) == (7.5, "m")


async def test_figures_cost_the_same_however_many_tenants_wait(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lanes are bounded, and so are the commands; no key is searched for."""
    num = 3 * MAX_TENANTS
    await submit(scripts, *(a_job(f"j@t{n:03}", tenant=f"t{n:03}") for n in range(num)))
    asked: list[str] = []
    redis: Any = scripts.redis
    pipeline = redis.pipeline

    def note(**options: Any) -> Any:
        made = pipeline(**options)
        execute = made.execute_command

        def noted(*args: Any, **more: Any) -> Any:
            asked.append(str(args[0]))
            return execute(*args, **more)

        monkeypatch.setattr(made, "execute_command", noted)
        return made

    monkeypatch.setattr(redis, "pipeline", note)
    figures = await read_figures(scripts.redis, scripts.keys)
    assert len(figures.lanes) == MAX_TENANTS
    assert figures.priorities[1].waiting_jobs == num
    assert len(asked) < 4 * MAX_TENANTS
    assert not {"SCAN", "KEYS"} & set(asked)
