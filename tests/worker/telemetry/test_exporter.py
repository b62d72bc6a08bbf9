"""Metrics of a worker: what a scrape says is what happened."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from patience import PATIENCE_S
from prometheus_client.parser import text_string_to_metric_families
from servers.fixtures import pool, redis_url, server
from servers.ports import free_port
from workers.null_workers import follow, null_settings, until, worker

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.telemetry.histogram import BOUNDS_S, Histogram
from tokenbus.producer.telemetry.tenant_labels import TenantLabels
from tokenbus.producer.telemetry.worker_table import WORKER
from tokenbus.worker.errors import SettingsInvalid
from tokenbus.worker.metrics import Metrics
from tokenbus.worker.supervisor import Worker

__all__ = ["pool", "redis_url", "server"]


def _scrape(port: int) -> dict[str, float]:
    """Return every sample by its name and the values of its labels, in the order of their names."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as reply:
        text = reply.read().decode()
    return {
        " ".join([sample.name, *(v for k, v in sample.labels.items() if k not in _BASE)]): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


_BASE = ("pool", "model")


def _probe(port: int, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S) as reply:
            return reply.status, json.load(reply)
    except HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize("publishers", [0, 1])
async def test_scrape_tells_what_happened(redis_url: str, pool: str, publishers: int) -> None:
    """Jobs, tokens, pages and times of a finished load, whoever published them."""
    port = free_port()
    async with (
        worker(
            pool, redis_url, publishers=publishers, metrics_port=port, metrics_tenants=1
        ) as running,
        await AsyncClient.connect(redis_url, pool=pool) as client,
    ):
        jobs = [
            await client.submit("a prompt", seed=seed, max_tokens=50, tenant=tenant, priority=2)
            for seed, tenant in enumerate(("shop", "shop", "mill", "farm"))
        ]
        tenants = ("shop", "shop", "mill", "farm")
        await asyncio.gather(
            *(
                follow(client, job.job_id, tenant=tenant)
                for job, tenant in zip(jobs, tenants, strict=True)
            )
        )
        await until(lambda: running.num_held == 0 and running.metrics.tokens_logged == 200)
        await until(lambda: running.metrics.ttft[2].count == running.metrics.e2e[2].count == 4)
        seen = await asyncio.to_thread(_scrape, port)
        entries = running.metrics.log_entries
    assert {metric.name.removesuffix("_total") for metric in WORKER.metrics} >= {
        name.split(" ")[0].removesuffix("_total").removesuffix("_bucket") for name in seen
    } - {f"{m.name}_{part}" for m in WORKER.metrics for part in ("count", "sum")}
    label = next(
        name
        for name in ("shop", "mill", "farm")
        if f"tokenbus_jobs_total finished 2 {name}" in seen
    )
    assert seen[f"tokenbus_jobs_total finished 2 {label}"] == (2 if label == "shop" else 1)
    assert seen["tokenbus_jobs_total finished 2 other"] == (2 if label == "shop" else 3)
    assert seen["tokenbus_job_tokens_total generated 2 other"] in (100, 150)
    assert seen["tokenbus_jobs_held running 2"] == 0
    assert seen["tokenbus_tokens_total logged"] == 200
    assert seen["tokenbus_tokens_total generated"] == 200
    assert seen["tokenbus_pages held"] == seen["tokenbus_pages shared"] == 0
    assert seen["tokenbus_pages free"] > 0
    assert seen["tokenbus_queue_time_seconds_count 2"] == 4
    assert seen["tokenbus_ttft_seconds_count 2"] == 4
    assert seen["tokenbus_ttft_seconds_sum 2"] <= seen["tokenbus_e2e_seconds_sum 2"]
    assert seen["tokenbus_e2e_seconds_count 2"] == 4
    assert seen["tokenbus_itl_seconds_count 2"] == 4 * 49
    assert seen["tokenbus_step_time_seconds_count"] >= 50
    assert seen["tokenbus_publish_lag_seconds_count"] == seen["tokenbus_log_entries_total"]
    assert seen["tokenbus_log_entries_total"] == entries
    assert seen["tokenbus_coalescing_seconds"] >= 0
    assert seen["tokenbus_ready"] == seen["tokenbus_worker_phase ready"] == 1
    assert seen["tokenbus_engine_ends_total signal"] == seen["tokenbus_engine_ends_in_a_row"] == 0


async def test_probes_tell_the_phase_before_the_model_is_there(pool: str, redis_url: str) -> None:
    """A worker that starts is well and not ready, and says what it is at; later it is both."""
    port = free_port()
    told: list[tuple[int, dict[str, Any]]] = []

    def ask(_phase: str, _percent: int, _for_s: int) -> None:
        told.extend(_probe(port, path) for path in ("/healthz", "/readyz"))

    settings = null_settings(pool, redis_url, metrics_port=port)
    async with Worker(settings, tell_phase=ask) as running:
        ready = await asyncio.to_thread(_probe, port, "/readyz")
        running.request_stop()
        await until(lambda: running.has_ended)
    (health, _), (status, readiness) = told[:2]
    assert (health, status) == (200, 503)
    assert (readiness["phase"], readiness["told"]) == ("starting", "starting the process")
    assert ready[0] == 200
    assert ready[1]["phase"] == "ready"


async def test_port_in_use_is_said_by_name(redis_url: str, pool: str) -> None:
    """A worker that cannot serve its metrics stops with the setting's name."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        taken = sock.getsockname()[1]
        with pytest.raises(SettingsInvalid, match="metrics_port"):
            async with worker(pool, redis_url, metrics_port=taken) as running:
                await until(lambda: running.has_ended)


def test_sorted_durations_fall_where_single_ones_do() -> None:
    """Counting by bucket and counting one by one agree, on the bounds too."""
    durations = sorted([0.0, 1e-4, *BOUNDS_S, *(bound * 1.01 for bound in BOUNDS_S), 1e4])
    together, apart = Histogram(), Histogram()
    together.add_sorted(durations)
    for duration in durations:
        apart.add(duration)
    assert together.counts == apart.counts
    assert together.cumulative()[-1] == ("+Inf", len(durations))


def test_quantiles_are_of_what_came_since() -> None:
    """A quantile lies in the bucket of its duration, and leaves out what was there before."""
    histogram = Histogram()
    assert histogram.quantile(0.5) is None
    histogram.add_sorted([0.0015] * 90)
    before = list(histogram.counts)
    histogram.add_sorted([0.3] * 10)
    assert 0.001 <= (histogram.quantile(0.5) or 0) <= 0.002
    assert 0.2 <= (histogram.quantile(0.99) or 0) <= 0.5
    assert 0.2 <= (histogram.quantile(0.5, before) or 0) <= 0.5
    histogram.add(1e6)
    assert histogram.quantile(1.0) == BOUNDS_S[-1]


def test_tenants_past_the_limit_share_a_label() -> None:
    """The first that come have labels of their own and keep them, named ones always.

    A share of a tenant has its tenant's.
    """
    labels = TenantLabels(2, ["named"])
    assert [labels.of(tenant) for tenant in ("a", "b", "c", "a", "named")] == [
        *("a", "b", "other", "a", "named")
    ]
    metrics = Metrics()
    for tenant in ("shop/3f", "shop/40", "shop"):
        metrics.left(1, tenant, "finished")
    metrics.count()
    assert metrics.ends == {(1, "shop", "finished"): 3}
