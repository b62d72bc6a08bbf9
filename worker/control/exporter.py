"""The counters of a control process in the Prometheus text format, where a port is set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from tokenbus.worker.control.metrics import ControlMetrics

_WEBHOOK_OUTCOMES = ("delivered", "retried", "gone", "refused", "expired")
_JOB_OUTCOMES = ("finished", "failed", "cancelled", "retried")


class ControlExporter(Collector):
    """Reads the counters when it is asked."""

    def __init__(self, metrics: ControlMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Return everything as of now; called by the server's thread."""
        metrics = self._metrics
        tries = CounterMetricFamily(
            "tokenbus_webhook_tries",
            "Tries of webhooks, by what followed: gone, refused and expired ones are dead",
            labels=["outcome"],
        )
        for outcome in _WEBHOOK_OUTCOMES:
            tries.add_metric([outcome], metrics.webhooks[outcome])
        yield tries
        ticks = CounterMetricFamily(
            "tokenbus_cron_ticks", "Ticks of crons that this process ran", labels=["cron"]
        )
        for name, count in list(metrics.crons.items()):
            ticks.add_metric([name], count)
        yield ticks
        jobs = CounterMetricFamily(
            "tokenbus_adapter_jobs", "Jobs of arq that left the adapter", labels=["outcome"]
        )
        for outcome in _JOB_OUTCOMES:
            jobs.add_metric([outcome], metrics.adapter_jobs[outcome])
        yield jobs
        yield GaugeMetricFamily(
            "tokenbus_adapter_jobs_running",
            "Jobs of arq that the adapter waits for",
            metrics.adapter_running,
        )
