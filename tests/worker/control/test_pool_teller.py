"""The metrics of a pool: told by one control process, also where no worker lives."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING
from urllib.request import urlopen

from patience import PATIENCE_S
from prometheus_client.parser import text_string_to_metric_families
from servers.ports import free_port
from workers.stubs import StubWorker, a_job, raw, submit

from tokenbus.producer.client.backlog import Assumed
from tokenbus.producer.telemetry.control_table import BUILD_INFO, CONTROL, POOL
from tokenbus.worker.control.metrics import ControlMetrics
from tokenbus.worker.control.service import serve
from tokenbus.worker.control.settings import ControlSettings
from tokenbus.worker.control.telemetry.control_life import ControlLife
from tokenbus.worker.control.telemetry.exporter import ControlExporter
from tokenbus.worker.control.telemetry.pool_teller import LEASE_MS, PoolTeller

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts


def _samples(exporter: ControlExporter) -> dict[str, float]:
    """Return every sample by its name and the values of its labels, in the order of their names."""
    return {
        " ".join([sample.name, *(value for _, value in sorted(sample.labels.items()))]): (
            sample.value
        )
        for family in exporter.collect()
        for sample in family.samples
    }


def _exporter(watch: PoolTeller, pool: str) -> ControlExporter:
    settings = ControlSettings.load(pool=pool, metrics_tenants=1, metrics_tenant_names=["named"])
    exporter = ControlExporter(ControlMetrics(), settings, ControlLife())
    exporter.watch = watch
    return exporter


async def test_one_process_tells_of_the_pool_and_another_follows_it(
    scripts: Scripts, pool: str
) -> None:
    """The sum over two processes is the pool's; when the first goes, the second tells of it."""
    await submit(scripts, a_job("one"), a_job("two"))
    watches = [PoolTeller(scripts, assumed=Assumed(24, start_s=0)) for _ in range(2)]
    exporters = [_exporter(watch, pool) for watch in watches]

    async def waiting() -> list[float | None]:
        for watch in watches:
            await watch.look()
        name = f"tokenbus_pool_waiting_jobs  {pool} 1"
        return [_samples(exporter).get(name) for exporter in exporters]

    assert await waiting() == [2, None]
    assert 0 < await raw(scripts).pttl(scripts.keys.of("watcher")) <= LEASE_MS
    first = asyncio.create_task(watches[0].run())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await watches[1].look()
    assert [watch.seen is not None for watch in watches] == [False, True]
    assert _samples(exporters[1])[f"tokenbus_pool_waiting_jobs  {pool} 1"] == 2
    assert _samples(exporters[1])[f"tokenbus_pool_backlog_seconds  {pool}"] == 4


async def test_worker_that_says_nothing_of_leaving_is_counted_as_lost(
    scripts: Scripts, pool: str
) -> None:
    """A lease that runs out is a loss, once; that of a worker which said good-bye is none."""
    redis, keys = raw(scripts), scripts.keys
    watch = PoolTeller(scripts, assumed=Assumed(1, start_s=0))
    for name in ("before", "killed", "stopped"):
        await StubWorker(scripts, name).reconcile()
    await redis.delete(keys.of("alive", "before"))
    await scripts.lease.scan()
    await watch.look()
    assert _samples(_exporter(watch, pool))[f"tokenbus_pool_workers_lost_total  {pool}"] == 0
    await scripts.lease.leave("stopped")
    await redis.delete(keys.of("alive", "killed"), keys.of("alive", "stopped"))
    # Later than the look before, by the server's clock.
    await asyncio.sleep(0.002)
    await scripts.lease.scan()
    await watch.look()
    await watch.look()
    seen = _samples(_exporter(watch, pool))
    assert seen[f"tokenbus_pool_workers_lost_total  {pool}"] == 1
    assert seen[f"tokenbus_server_up {pool}"] == 1


async def test_every_metric_of_a_pool_moves(scripts: Scripts, pool: str) -> None:
    """Between an empty pool and one in which all that is told of has happened, nothing stays."""
    redis, keys = raw(scripts), scripts.keys
    watch = PoolTeller(scripts, assumed=Assumed(1, start_s=0))
    exporter = _exporter(watch, pool)

    def seen() -> dict[str, set[tuple[str, float]]]:
        return {
            family.name: {(str(sample.labels), sample.value) for sample in family.samples}
            for family in exporter.collect()
        }

    await watch.look()
    before = seen()
    worker = StubWorker(scripts)
    await worker.reconcile()
    await submit(scripts, a_job("held"))
    await worker.pull()
    await submit(scripts, a_job("waits"), a_job("suspect"))
    engine = {"free_pages": 3, "evictable_pages": 2, "shared_pages": 1, "num_running": 1}
    told = {"v": 1, "model": "m", "version": "9", "total_pages": 10, "engine": engine}
    told |= {"tokens_per_s": 5.0, "prompt_tokens_per_s": 6.0}
    await redis.set(keys.of("status", worker.name), json.dumps(told))
    await redis.hset(keys.of("drain"), mapping={"tokens": 1000, "busy": 10_000})
    await redis.hset(keys.of("kept"), mapping={"bytes": 7})
    await redis.xadd(keys.of("dead"), {"x": "y"})
    await redis.xadd(keys.of("suspects"), {"x": "y"})
    await scripts.control.pause(is_paused=True)
    await asyncio.sleep(0.002)
    await watch.look()
    after = seen()
    await redis.delete(keys.of("alive", worker.name))
    await scripts.lease.scan()
    await watch.look()
    lost = seen()
    names = {metric.name.removesuffix("_total") for metric in POOL.metrics}
    moved = {name for name in names if after[name] != before[name] or lost[name] != after[name]}
    assert moved == names


async def test_every_metric_of_a_control_process_moves(scripts: Scripts, pool: str) -> None:
    """What a process counts and knows of itself moves every metric that is declared for it."""
    metrics, life = ControlMetrics(), ControlLife()
    exporter = ControlExporter(metrics, ControlSettings.load(pool=pool), life)

    def seen() -> dict[str, set[tuple[str, float]]]:
        return {
            family.name: {(str(sample), sample.value) for sample in family.samples}
            for family in exporter.collect()
        }

    before = seen()
    exporter.watch = PoolTeller(scripts, assumed=Assumed(1, start_s=0))
    await exporter.watch.look()
    life.works()
    metrics.webhook_time.add(0.1)
    metrics.webhooks["delivered"] += 1
    metrics.crons["nightly"] += 1
    metrics.adapter_jobs["finished"] += 1
    metrics.adapter_running += 1
    after = seen()
    names = {metric.name.removesuffix("_total") for metric in CONTROL.metrics} - {BUILD_INFO.name}
    assert names == {name for name in names if before.get(name) != after[name]}


async def test_tenants_without_a_label_are_added_up(scripts: Scripts, pool: str) -> None:
    """Named tenants have labels always, others as many as are allowed for; nothing is left out."""
    tenants = ("named", "a", "b", "c")
    await submit(scripts, *(a_job(f"j@{tenant}", tenant=tenant) for tenant in tenants))
    watch = PoolTeller(scripts, assumed=Assumed(1, start_s=0))
    await watch.look()
    seen = _samples(_exporter(watch, pool))
    jobs = {
        name.split(" ")[-1]: value
        for name, value in seen.items()
        if name.startswith("tokenbus_pool_tenant_waiting_jobs ")
    }
    assert jobs.pop("named") == 1
    assert jobs.pop("other") == 2
    assert list(jobs.values()) == [1]
    tokens = [v for n, v in seen.items() if n.startswith("tokenbus_pool_tenant_waiting_tokens ")]
    assert sum(tokens) == 4 * 48


async def test_service_answers_scrapes_and_probes(
    redis_url: str, pool: str, scripts: Scripts
) -> None:
    """A service tells every metric of its tables, and is ready once it works."""
    await submit(scripts, a_job("one"))
    await raw(scripts).hset(scripts.keys.of("drain"), mapping={"tokens": 1000, "busy": 10_000})
    port = free_port()
    settings = ControlSettings.load(redis_url=redis_url, pool=pool, metrics_port=port)
    service = asyncio.create_task(serve(settings))

    def read(path: str) -> str:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S) as reply:
            text: str = reply.read().decode()
            return text

    try:
        async with asyncio.timeout(PATIENCE_S):
            text = ""
            while "tokenbus_pool_backlog_seconds{" not in text:
                assert not service.done()
                try:
                    text = await asyncio.to_thread(read, "/metrics")
                except OSError:
                    await asyncio.sleep(0.1)
        assert '"phase": "ready"' in await asyncio.to_thread(read, "/readyz")
    finally:
        service.cancel()
        await asyncio.gather(service, return_exceptions=True)
    told = {family.name for family in text_string_to_metric_families(text)}
    assert told == {m.name.removesuffix("_total") for m in (*CONTROL.metrics, *POOL.metrics)}
