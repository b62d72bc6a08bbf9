"""The list of jobs: by state and tenant, bounded, and read without scanning keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from workers.stubs import StubWorker, a_job, first_step, raw, submit

from tokenbus.producer.client.job_list import list_jobs
from tokenbus.producer.client.pool_status import read_status
from tokenbus.producer.errors import RequestInvalid
from tokenbus.producer.scripts.replies import JobState

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts


async def _names(scripts: Scripts, **wanted: Any) -> list[str]:
    return [job.job_id for job in (await list_jobs(scripts, **wanted)).jobs]


async def test_jobs_are_listed_by_state_and_tenant(scripts: Scripts) -> None:
    """Held, waiting, delayed and ending jobs are found where they lie, ended ones are not."""
    worker = StubWorker(scripts)
    await worker.reconcile()
    await submit(scripts, a_job("held", priority=0), a_job("over", priority=0))
    for job in (await worker.pull()).jobs:
        if job.job_id == "over":
            await worker.run("over", job.epoch, 1)
            await first_step(scripts, "over", '{"reason":"stop"}', 33)
    await submit(
        scripts,
        a_job("first"),
        a_job("second@shop", tenant="shop"),
        a_job("late", not_before_ms=60_000),
        a_job("gone"),
    )
    await scripts.queue.cancel("gone")
    assert await _names(scripts) == ["held", "first", "second", "late", "gone"]
    assert await _names(scripts, tenant="shop") == ["second"]
    assert await _names(scripts, states=["delayed", "ending"]) == ["late", "gone"]
    [held] = (await list_jobs(scripts, states=[JobState.HELD])).jobs
    assert (held.worker, held.tenant, held.tokens) == (worker.name, "acme", 48)


async def test_jobs_that_were_handed_back_are_listed(scripts: Scripts) -> None:
    """What a worker gave back waits before the lanes, and is listed there."""
    worker = StubWorker(scripts)
    await worker.reconcile()
    await submit(scripts, a_job("back"))
    [job] = (await worker.pull()).jobs
    await scripts.lease.requeue(worker.name, "back", job.epoch)
    await submit(scripts, a_job("new"))
    assert await _names(scripts, states=["waiting"]) == ["back", "new"]
    status = await read_status(scripts.redis, scripts.keys, with_oldest=True)
    assert [(each.priority, each.tenant, each.job_id) for each in status.oldest] == [
        (1, "acme", "back")
    ]


async def test_list_is_bounded_and_scans_no_keys(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list is cut at its limit and says so, and reads named keys alone."""
    await submit(
        scripts,
        *(a_job(f"j-{number}@t{number % 40}", tenant=f"t{number % 40}") for number in range(120)),
    )
    asked: list[str] = []
    redis: Any = scripts.redis
    execute = redis.execute_command

    async def note(*args: Any, **options: Any) -> Any:
        asked.append(str(args[0]))
        return await execute(*args, **options)

    monkeypatch.setattr(scripts.redis, "execute_command", note)
    cut = await list_jobs(scripts, limit=100)
    assert (len(cut.jobs), cut.is_whole) == (100, False)
    whole = await list_jobs(scripts, limit=120)
    assert (len({(job.tenant, job.job_id) for job in whole.jobs}), whole.is_whole) == (120, True)
    assert "XRANGE" in asked
    assert not {"SCAN", "KEYS"} & set(asked)


@pytest.mark.parametrize(
    "wanted", [{"limit": 0}, {"limit": 1001}, {"states": ["done"]}, {"tenant": "a\ud800"}]
)
async def test_list_that_makes_no_sense_is_refused(scripts: Scripts, wanted: Any) -> None:
    """Limits have bounds, and jobs that ended are in no list."""
    with pytest.raises(RequestInvalid):
        await list_jobs(scripts, **wanted)


async def test_status_tells_what_a_worker_last_said(scripts: Scripts) -> None:
    """Model, pages, running and rate come from the worker's own gauges; a pause is told."""
    worker = StubWorker(scripts)
    await worker.reconcile()
    told = (
        '{"v":1,"model":"m","page_size":16,"total_pages":100,"ready":true,"tokens_per_s":7.5,'
        '"engine":{"free_pages":30,"evictable_pages":20,"num_running":4}}'
    )
    await raw(scripts).set(scripts.keys.of("status", worker.name), told)
    await scripts.control.pause(is_paused=True)
    status = await read_status(scripts.redis, scripts.keys)
    [shown] = status.details
    assert (shown.model, shown.used_pages, shown.total_pages) == ("m", 50, 100)
    assert (shown.running, shown.tokens_per_s, shown.outage) == (4, 7.5, None)
    assert status.paused_for_s is not None
