"""The metrics of a control process and, while it watches the pool, those of the pool."""

from __future__ import annotations

import platform
from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client.registry import Collector

from tokenbus.producer.client.worker_status import WorkerPhase
from tokenbus.producer.release import release
from tokenbus.producer.telemetry import control_table as told
from tokenbus.producer.telemetry.scrape import Scrape
from tokenbus.producer.telemetry.tenant_labels import TenantLabels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric as Family

    from tokenbus.producer.client.pool_figures import PoolFigures
    from tokenbus.worker.control.metrics import ControlMetrics
    from tokenbus.worker.control.settings import ControlSettings
    from tokenbus.worker.control.telemetry.control_life import ControlLife
    from tokenbus.worker.control.telemetry.pool_teller import PoolTeller, Watched

_WEBHOOK_OUTCOMES = ("delivered", "retried", "gone", "refused", "expired")
_JOB_OUTCOMES = ("finished", "failed", "cancelled", "retried")


class ControlExporter(Collector):
    """Reads the counters and the figures when it is asked; called by the server's threads.

    `watch` is set once the process is connected; an adapter never has one.
    """

    def __init__(
        self, metrics: ControlMetrics, settings: ControlSettings, life: ControlLife
    ) -> None:
        self.watch: PoolTeller | None = None
        self._metrics = metrics
        self._pool = settings.pool
        self._life = life
        self._tenants = TenantLabels(settings.metrics_tenants, settings.metrics_tenant_names)

    def collect(self) -> Iterator[Family]:
        """Return everything as of now."""
        yield from self._own().families()
        seen = None if self.watch is None else self.watch.seen
        if seen is not None:
            yield from self._of_pool(seen).families()

    def _own(self) -> Scrape:
        scrape, metrics = Scrape(told.CONTROL, self._pool), self._metrics
        scrape.one(told.BUILD_INFO, 1, "control", release(), platform.python_version())
        scrape.one(told.READY, int(self._life.is_ready))
        if self.watch is not None:
            scrape.one(told.SERVER_UP, int(self.watch.is_server_up))
        is_watcher = self.watch is not None and self.watch.seen is not None
        scrape.one(told.IS_WATCHER, int(is_watcher))
        for outcome in _WEBHOOK_OUTCOMES:
            scrape.one(told.WEBHOOK_TRIES, metrics.webhooks[outcome], outcome)
        scrape.histogram(told.WEBHOOK_TIME, metrics.webhook_time)
        scrape.many(told.CRON_TICKS, {(name,): n for name, n in dict(metrics.crons).items()})
        for outcome in _JOB_OUTCOMES:
            scrape.one(told.ADAPTER_JOBS, metrics.adapter_jobs[outcome], outcome)
        scrape.one(told.ADAPTER_RUNNING, metrics.adapter_running)
        return scrape

    def _of_pool(self, seen: Watched) -> Scrape:
        figures = seen.figures
        scrape = Scrape(told.POOL, figures.pool, figures.model)
        for each in figures.priorities:
            priority = str(each.priority)
            scrape.one(told.WAITING_JOBS, each.waiting_jobs, priority)
            scrape.one(told.WAITING_TOKENS, each.waiting_tokens, priority)
            scrape.one(told.HELD_JOBS, each.held_jobs, priority)
            scrape.one(told.OLDEST_AGE, each.oldest_age_s or 0.0, priority)
        scrape.one(told.BACKLOG_SECONDS, figures.seconds_of_backlog)
        scrape.one(told.BACKLOG_WORKER_SECONDS, figures.worker_seconds_of_backlog)
        if figures.drain_tokens_per_s is not None:
            scrape.one(told.DRAIN_RATE, figures.drain_tokens_per_s)
        scrape.one(told.GENERATED_RATE, figures.generated_tokens_per_s)
        scrape.one(told.PROMPT_RATE, figures.prompt_tokens_per_s)
        scrape.one(told.PAUSED, int(figures.status.paused_for_s is not None))
        scrape.one(told.KEPT_BYTES, figures.status.kept_bytes)
        scrape.one(told.DEAD_LETTERS, seen.dead_letters)
        scrape.one(told.SUSPECTS, seen.suspects)
        scrape.one(told.WORKERS_LOST, seen.num_lost)
        if seen.memory_bytes is not None:
            scrape.one(told.SERVER_MEMORY, seen.memory_bytes, "used")
            scrape.one(told.SERVER_MEMORY, seen.max_memory_bytes or 0, "bound")
        _workers(scrape, figures)
        self._lanes(scrape, figures)
        return scrape

    def _lanes(self, scrape: Scrape, figures: PoolFigures) -> None:
        """Add the jobs of tenants; those without a label of their own are added up."""
        waiting, held, tokens = Counter[str](), Counter[str](), Counter[str]()
        for lane in figures.lanes:
            at = f"{lane.priority} {self._tenants.of(lane.tenant)}"
            waiting[at] += lane.waiting_jobs
            held[at] += lane.held_jobs
        for tenant, num_tokens in figures.tenant_waiting_tokens.items():
            tokens[self._tenants.of(tenant)] += num_tokens
        for at, count in waiting.items():
            scrape.one(told.TENANT_WAITING_JOBS, count, *at.split(" ", 1))
            scrape.one(told.TENANT_HELD_JOBS, held[at], *at.split(" ", 1))
        scrape.many(told.TENANT_WAITING_TOKENS, {(label,): n for label, n in tokens.items()})


def _workers(scrape: Scrape, figures: PoolFigures) -> None:
    phases = Counter(worker.phase for worker in figures.workers)
    scrape.many(told.WORKERS, {(phase.value,): phases[phase] for phase in WorkerPhase})
    versions = Counter(worker.version or "" for worker in figures.workers)
    scrape.many(told.WORKER_VERSIONS, {(version,): n for version, n in versions.items()})
    pages = figures.pages
    if pages is not None:
        for state in ("free", "cached", "shared", "held"):
            scrape.one(told.POOL_PAGES, getattr(pages, state), state)
