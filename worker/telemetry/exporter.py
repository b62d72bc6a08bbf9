"""The worker's gauges and counters in the Prometheus text format, where a port is set.

Nothing is counted for it on a token's way: it reads what the parts know when it is asked.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from tokenbus.producer.contract.events import TOOL_CALLS
from tokenbus.worker.errors import DeathCause, SessionLost
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.logs import get_logger
from tokenbus.worker.telemetry.metrics_server import metrics_served

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from tokenbus.worker.engine.current_engine import CurrentEngine
    from tokenbus.worker.held.pool_member import PoolMember
    from tokenbus.worker.histogram import Histogram
    from tokenbus.worker.jobs.page_costs import PageCosts

DEPTH_INTERVAL_S = 1.0
_ENDS = ("finished", "failed", "cancelled", "expired", "requeued")
_FINISH_REASONS = ("stop", "length", TOOL_CALLS)


class Exporter(Collector):
    """Answers scrapes in a thread of its own, and asks the queue for its depth once a second."""

    def __init__(
        self, member: PoolMember, *, costs: PageCosts, engine: CurrentEngine, port: int
    ) -> None:
        self._host = member.settings.metrics_host
        self._port = port
        self._session = member.session
        self._scripts = member.scripts
        self._held_jobs = member.held_jobs
        self._metrics = member.metrics
        self._costs = costs
        self._engine = engine
        self._depth: dict[str, int] = {}
        self._is_paused = False
        self._log = get_logger()

    async def run(self) -> None:
        """Serve for ever.

        Raises: SettingsInvalid if the port cannot be had.
        """
        async with metrics_served(self, self._host, self._port):
            while True:
                await self._look_at_the_queue()
                await asyncio.sleep(DEPTH_INTERVAL_S)

    def collect(self) -> Iterator[Metric]:
        """Return everything as of now; called by the server's thread."""
        yield from self._jobs()
        yield from self._pages()
        yield from self._engines()
        yield from self._tokens()
        yield from self._publishing()

    def _jobs(self) -> Iterator[Metric]:
        held = GaugeMetricFamily(
            "tokenbus_jobs_held", "Jobs that this worker owns, by phase", labels=["phase"]
        )
        phases = [job.phase for job in self._held_jobs]
        for phase in Phase:
            if phase is not Phase.GONE:
                held.add_metric([phase.value], phases.count(phase))
        yield held
        ended = CounterMetricFamily(
            "tokenbus_jobs", "Jobs that left this worker, by outcome", labels=["outcome"]
        )
        for name in _ENDS:
            ended.add_metric([name], getattr(self._metrics, f"jobs_{name}"))
        yield ended
        choices = CounterMetricFamily(
            "tokenbus_choices", "Choices of finished jobs, by why they ended", labels=["reason"]
        )
        for reason in _FINISH_REASONS:
            choices.add_metric([reason], self._metrics.choices[reason])
        yield choices
        waiting = GaugeMetricFamily(
            "tokenbus_queue", "What waits in the pool: jobs and tokens", labels=["unit"]
        )
        for unit in ("jobs", "tokens"):
            waiting.add_metric([unit], self._depth.get(unit, 0))
        yield waiting
        yield GaugeMetricFamily(
            "tokenbus_pool_paused", "1 while pulls take nothing", int(self._is_paused)
        )
        times = self._metrics
        yield _histogram("tokenbus_ttft_seconds", "From the pull to the first token", times.ttft)
        yield _histogram("tokenbus_itl_seconds", "Between tokens of ended jobs", times.itl)

    def _pages(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        pages = GaugeMetricFamily("tokenbus_pages", "KV pages, by state", labels=["state"])
        if stats is not None:
            used = self._costs.total_pages - stats.free_pages - stats.evictable_pages
            pages.add_metric(["used"], used)
            pages.add_metric(["free"], stats.free_pages)
            pages.add_metric(["evictable"], stats.evictable_pages)
        yield pages

    def _engines(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "tokenbus_engine_up", "1 while jobs can be given to an engine", int(self._engine.is_up)
        )
        outage = self._engine.outage
        yield GaugeMetricFamily(
            "tokenbus_engine_ends_in_a_row",
            "Engines that died or did not start in a row, with no job to blame; 0 while one is up",
            outage.num_in_a_row if outage else 0,
        )
        ends = CounterMetricFamily(
            "tokenbus_engine_ends", "Engines that died or did not start, by cause", labels=["cause"]
        )
        for cause in DeathCause:
            ends.add_metric([cause.value], self._metrics.engine_ends[cause])
        yield ends
        yield CounterMetricFamily(
            "tokenbus_suspects_cleared",
            "Jobs that passed the place where an engine had died with them",
            self._metrics.suspects_cleared,
        )

    def _tokens(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        tokens = CounterMetricFamily(
            "tokenbus_tokens",
            "Tokens, by what became of them: prompt tokens asked for and those of them found in"
            " the prefix cache, tokens generated and those of them preempted, tokens logged",
            labels=["kind"],
        )
        if stats is not None:
            tokens.add_metric(["prompt"], stats.prompt_tokens_total)
            tokens.add_metric(["cached"], stats.cached_tokens_total)
            tokens.add_metric(["generated"], stats.generated_tokens_total)
            tokens.add_metric(["preempted"], stats.preempted_tokens_total)
        tokens.add_metric(["logged"], self._metrics.tokens_logged)
        yield tokens
        if stats is not None:
            asked = stats.prompt_tokens_total + stats.cached_tokens_total
            yield GaugeMetricFamily(
                "tokenbus_prefix_hit_ratio",
                "Share of prompt tokens found in the prefix cache",
                stats.cached_tokens_total / asked if asked else 0.0,
            )
            yield GaugeMetricFamily(
                "tokenbus_preempted_ratio",
                "Preempted tokens over generated ones",
                stats.preempted_tokens_total / max(1, stats.generated_tokens_total),
            )

    def _publishing(self) -> Iterator[Metric]:
        metrics = self._metrics
        yield _histogram(
            "tokenbus_publish_lag_seconds",
            "From the engine's hand-off to the log's confirmation, per entry",
            metrics.publish_lag,
        )
        yield GaugeMetricFamily(
            "tokenbus_coalescing_seconds",
            "How long tokens are held back so that more share an entry; 0 while all keep up",
            metrics.hold_s,
        )
        yield CounterMetricFamily(
            "tokenbus_publish_wait_seconds",
            "From the hand-off to the call, summed over entries",
            metrics.publish_wait_s,
        )
        yield CounterMetricFamily("tokenbus_log_entries", "Entries written", metrics.log_entries)
        yield CounterMetricFamily("tokenbus_log_calls", "Append calls made", metrics.log_calls)
        yield CounterMetricFamily(
            "tokenbus_sessions_lost", "Times that the server went away", self._session.num_losses
        )

    async def _look_at_the_queue(self) -> None:
        try:
            self._depth = await self._session.call(self._scripts.lease.load)
            since = await self._session.call(self._scripts.control.paused_since)
            self._is_paused = since is not None
        except SessionLost:
            return
        except RedisError as error:
            self._log.warning("metrics.depth_refused", reason=str(error))


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    return HistogramMetricFamily(
        name, text, buckets=histogram.cumulative(), sum_value=histogram.sum_s
    )
