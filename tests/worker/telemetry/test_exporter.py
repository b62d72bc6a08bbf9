"""Metrics of a worker: what a scrape says is what happened."""

from __future__ import annotations

import asyncio
import socket
from urllib.request import urlopen

import pytest
from patience import PATIENCE_S
from prometheus_client.parser import text_string_to_metric_families
from servers.fixtures import pool, redis_url, server
from workers.null_workers import follow, until, worker

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.worker.errors import SettingsInvalid
from tokenbus.worker.histogram import BOUNDS_S, Histogram

__all__ = ["pool", "redis_url", "server"]


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _scrape(port: int) -> dict[str, float]:
    """Return every sample by its name and labels."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as reply:
        text = reply.read().decode()
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("publishers", [0, 1])
async def test_scrape_tells_what_happened(redis_url: str, pool: str, publishers: int) -> None:
    """Jobs, tokens, pages and lags of a finished load, whoever published them."""
    port = _free_port()
    async with (
        worker(pool, redis_url, publishers=publishers, metrics_port=port) as running,
        await AsyncClient.connect(redis_url, pool=pool) as client,
    ):
        jobs = [await client.submit("a prompt", seed=seed, max_tokens=50) for seed in range(4)]
        await asyncio.gather(*(follow(client, job.job_id) for job in jobs))
        await until(lambda: running.num_held == 0 and running.metrics.tokens_logged == 200)
        async with asyncio.timeout(PATIENCE_S):
            # The depth of the queue is looked at once a second.
            while (seen := await asyncio.to_thread(_scrape, port))["tokenbus_queue jobs"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        entries = running.metrics.log_entries
    assert seen["tokenbus_jobs_total finished"] == 4
    assert seen["tokenbus_jobs_held running"] == 0
    assert seen["tokenbus_tokens_total logged"] == 200
    assert seen["tokenbus_tokens_total generated"] == 200
    assert seen["tokenbus_pages used"] == 0
    assert seen["tokenbus_ttft_seconds_count"] == 4
    assert seen["tokenbus_itl_seconds_count"] == 4 * 49
    assert seen["tokenbus_publish_lag_seconds_count"] == seen["tokenbus_log_entries_total"]
    assert seen["tokenbus_log_entries_total"] == entries
    assert seen["tokenbus_coalescing_seconds"] >= 0
    assert seen["tokenbus_engine_up"] == 1
    assert seen["tokenbus_engine_ends_total signal"] == seen["tokenbus_engine_ends_in_a_row"] == 0


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
    durations = sorted([0.0, 1e-4, *BOUNDS_S, *(bound * 1.01 for bound in BOUNDS_S), 1e3])
    together, apart = Histogram(), Histogram()
    together.add_sorted(durations)
    for duration in durations:
        apart.add(duration)
    assert together.counts == apart.counts
    assert together.cumulative()[-1] == ("+Inf", len(durations))
