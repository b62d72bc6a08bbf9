"""Each metric of a worker is fed by what it is named after, and moves in a real pool."""

from __future__ import annotations

import asyncio
import os
import signal
from array import array
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from servers.fixtures import client, pool, redis_url, server
from workers.null_workers import follow, null_settings, until, worker
from workers.parts import a_member, an_engine
from workers.stubs import StubWorker, raw

from tokenbus.engine.chat.usage import Usage
from tokenbus.engine.types import DraftCount, EngineStats
from tokenbus.producer.contract.events import Finish
from tokenbus.producer.scripts.log import Takeover
from tokenbus.producer.scripts.replies import PulledJob
from tokenbus.producer.telemetry import worker_table as told
from tokenbus.producer.telemetry.worker_table import WORKER
from tokenbus.worker.engine.current_engine import Outage
from tokenbus.worker.errors import DeathCause
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.life import WorkerLife
from tokenbus.worker.messages.publishing import Progress
from tokenbus.worker.telemetry.exporter import Exporter
from tokenbus.worker.token_moments import TokenMoments

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.worker.metrics import Metrics
    from tokenbus.worker.supervisor import Worker

__all__ = ["client", "pool", "redis_url", "server"]

# Always the same in one process.
CONSTANT = {told.BUILD_INFO.name}


def _samples(exporter: Exporter) -> dict[str, dict[str, float]]:
    """Return the samples of each metric by name, as what they are scraped as."""
    return {
        metric.name: {
            f"{sample.name} {sorted(sample.labels.items())}": sample.value
            for sample in family.samples
        }
        for metric, family in zip(WORKER.metrics, exporter.collect(), strict=True)
    }


def _moved(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> set[str]:
    return {name for name, samples in after.items() if samples != before[name]}


def _happen(metrics: Metrics) -> None:
    """Let each counter of a worker count one."""
    for name in metrics.as_dict():
        if not name.startswith("engine_ends_"):
            setattr(metrics, name, 1)
    metrics.engine_ends[DeathCause.SIGNAL] += 1
    metrics.choices["stop"] += 1
    metrics.left(1, "acme", "finished", Finish("stop", Usage(0, 0, 3)))
    metrics.hold_s = metrics.publish_wait_s = 0.5
    single = (metrics.publish_lag, metrics.step_time)
    for histogram in (
        *single,
        *(each[1] for each in (metrics.queue_time, metrics.ttft, metrics.itl, metrics.e2e)),
    ):
        histogram.add(0.01)


def test_every_metric_is_fed() -> None:
    """What a worker counts and knows moves every metric that is declared."""
    member, (engine, _) = a_member(session=_Session()), an_engine()
    link: Any = engine.link
    link.stats = EngineStats(100, 100, 0, 0, 0)
    life = WorkerLife(lambda *_: None)
    exporter = Exporter(null_settings("p", "redis://x"), life)
    early = _samples(exporter)
    assert {name for name, samples in early.items() if samples} == {
        *(told.BUILD_INFO.name, told.READY.name, told.PHASE.name)
    }
    exporter.attach(member, engine, model="null", total_pages=100)
    before = _samples(exporter)
    assert _moved(before, _samples(exporter)) == set()
    _happen(member.metrics)
    by_counts = _moved(before, _samples(exporter))
    drafts = (("own_text", DraftCount(8, 6)), ("grammar", DraftCount(2, 2)))
    link.stats = EngineStats(100, 50, 10, 3, 2, 9, 70, 30, 40, 4, 1, 5, 16, drafts)
    link.ready.follower_pids = (7,)
    pulled = PulledJob("j", 1, 0, 1, "acme", 1, False, 0, None, b"")
    job = member.held_jobs.take(pulled)
    job.prompt_tokens = 12
    job.move_to(Phase.RUNNING)
    engine.outage = Outage(DeathCause.SIGNAL, "x", 2, 1.0)
    member.session.num_losses = 1
    life.ready(lambda: True)
    after = _samples(exporter)
    assert _moved(before, after) == set(before) - CONSTANT
    assert told.JOBS.name in by_counts
    assert told.PAGES.name not in by_counts
    pages = {key.split("'")[-2]: value for key, value in after[told.PAGES.name].items()}
    assert pages == {"free": 50, "cached": 10, "shared": 5, "held": 35}
    [(_, hits)] = after[told.PREFIX_HIT_RATIO.name].items()
    assert hits == pytest.approx(0.3)
    drafted = sorted(after[told.DRAFT_TOKENS.name].values())
    assert drafted == [0, 2, 2, 6]
    [(_, per_step)] = after[told.TOKENS_PER_STEP.name].items()
    assert per_step == pytest.approx(1.5)


def test_scrape_has_what_was_noted_right_before() -> None:
    """Nobody has counted since: neither a second has passed nor has a status been written."""
    member, (engine, _) = a_member(session=_Session()), an_engine()
    link: Any = engine.link
    link.stats = EngineStats(100, 100, 0, 0, 0)
    exporter = Exporter(null_settings("p", "redis://x"), WorkerLife(lambda *_: None))
    exporter.attach(member, engine, model="null", total_pages=100)
    before = _samples(exporter)
    member.metrics.stepped(link.stats, 0.01)
    member.metrics.published(Progress(logged_tokens=1, calls=[([1.0], 1.5, 2.0)], hold_s=0.01))
    moments = TokenMoments(array("d", (1.0, 1.1)), (0, 2))
    member.metrics.left(1, "acme", "finished", Finish("stop", choices=("stop",)), moments)
    assert _moved(before, _samples(exporter)) == {
        *(told.STEP_TIME.name, told.TOKENS.name, told.PUBLISH_LAG.name, told.COALESCING.name),
        *(told.PUBLISH_WAIT.name, told.LOG_ENTRIES.name, told.LOG_CALLS.name),
        *(told.JOBS.name, told.JOB_TOKENS.name, told.CHOICES.name, told.ITL.name),
    }


class _Session:
    num_losses = 0


# What a pool with the null engine and one busy worker cannot show: a prefix cache, another worker
# with a prefix, jobs that grow when they are tokenised, and a publisher that falls behind; and what
# is not waited for, another engine in the place of a dead one.
NOT_SHOWN = {
    *(told.PREFIX_HIT_RATIO.name, told.PULLS_SPARED.name, told.UNDONE.name),
    *(told.COALESCING.name, told.PREEMPTIONS.name, told.PREEMPTED_RATIO.name),
    *(told.DRAFT_TOKENS.name, told.TOKENS_PER_STEP.name),
    *(told.SUSPECTS_CLEARED.name, told.SESSIONS_LOST.name, told.BUILD_INFO.name),
    told.ENGINE_RESTARTS.name,
}
FAILS = 300
# In which long answers, that end by no stall of the machine, leave too little room for another.
NUM_PAGES = 132


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_metrics_move_in_a_pool_where_things_happen(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """Ends of all kinds, an urgent job, a lost worker, a fenced log, raw entries, a dead engine."""
    moved: set[str] = set()
    async with worker(
        pool, redis_url, num_pages=NUM_PAGES, reserve_fraction=0, null_tokens_per_s=80,
        lease_ttl_s=1, renew_interval_s=0.2, null_fail_id=FAILS,
    ) as running:  # fmt: skip
        member, engine = running._parts.member, running._engine  # type: ignore[union-attr]
        exporter = Exporter(running.settings, running._life)
        exporter.attach(member, engine, model="null", total_pages=NUM_PAGES - 1)
        before = _samples(exporter)

        def look() -> None:
            moved.update(_moved(before, _samples(exporter)))

        looking = asyncio.create_task(_repeat(look))
        await _ends_of_all_kinds(client, running)
        await _urgent_job(client, running)
        await _lost_worker(client, running)
        await _fenced_log(client, running)
        await _raw_entries(client, running)
        await _dead_engine(client, running, look)
        running.request_stop()
        await until(lambda: running.has_ended or told.PHASE.name in moved)
        looking.cancel()
    assert moved >= set(before) - NOT_SHOWN, (set(before) - NOT_SHOWN) - moved


async def _repeat(look: Any) -> None:
    while True:
        look()
        await asyncio.sleep(0.2)


async def _ends_of_all_kinds(client: AsyncClient, running: Worker) -> None:
    done = await client.submit("x", max_tokens=8, priority=0)
    failing = await client.submit(token_ids=[FAILS], max_tokens=8)
    cancelled = await client.submit("x", max_tokens=1700)
    expired = await client.submit("x", max_tokens=500, deadline_s=1.0)
    await until(lambda: running.num_held >= 1)
    await client.cancel(cancelled.job_id)
    ends = [(await follow(client, job)).reason for job in (done, failing, cancelled, expired)]
    assert ends == ["length", "failed", "cancelled", "expired"]


async def _urgent_job(client: AsyncClient, running: Worker) -> None:
    num_pulled = running.metrics.jobs_pulled
    slow = [
        await client.submit("x" * 16, max_tokens=1000, priority=2, tenant=f"t{n}") for n in range(2)
    ]
    await until(lambda: running.metrics.jobs_pulled >= num_pulled + len(slow))
    await until(lambda: len(running._held_jobs.in_phase(Phase.RUNNING)) == 2)
    urgent = await client.submit("y" * 16, max_tokens=150, priority=0)
    await follow(client, urgent)
    assert running.metrics.jobs_parked >= 1
    for number, job in enumerate(slow):
        await client.cancel(job.job_id, f"t{number}")


async def _lost_worker(client: AsyncClient, running: Worker) -> None:
    """Let a worker die that holds a job."""
    dead = StubWorker(client.scripts)
    await dead.reconcile(ttl_ms=100)
    before = running.metrics.jobs_reaped
    await raw(client.scripts).hset(client.scripts.keys.of("held", dead.name), "its-job", 1)
    await until(lambda: running.metrics.jobs_reaped > before)


async def _fenced_log(client: AsyncClient, running: Worker) -> None:
    job = await client.submit("x", max_tokens=1500)
    held = running._held_jobs
    logged = running.metrics.tokens_logged
    await until(lambda: running.metrics.tokens_logged > logged + 5)
    epoch = next(each.epoch for each in held if each.job_id == job.job_id)
    await client.scripts.log.takeover([Takeover(job.job_id, epoch + 1, "zombie's heir")])
    await until(lambda: running.metrics.jobs_fenced >= 1)
    await until(lambda: running.metrics.jobs_resumed >= 1)
    await client.cancel(job.job_id)


async def _raw_entries(client: AsyncClient, running: Worker) -> None:
    redis, inbox = raw(client.scripts), client.scripts.keys.of("inbox")
    for body in ('{"v":1,"prompt":"x","max_tokens":2}', "{"):
        await redis.xadd(inbox, {"job": body})
    await until(lambda: running.metrics.inbox_accepted >= 1 and running.metrics.inbox_refused >= 1)


async def _dead_engine(client: AsyncClient, running: Worker, look: Callable[[], None]) -> None:
    """Kill the engine while it has no job: nobody is to blame, and it makes a row."""
    async with asyncio.timeout(PATIENCE_S):
        while (await client.status()).waiting_jobs or running.num_held:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    pid = running.engine_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await until(lambda: running._engine.outage is not None)
    look()
    await until(lambda: running.engine_pid != pid and running._engine.is_up)
