"""The worker's metrics, read from its parts when somebody asks.

Nothing is counted for them on a token's way: what was noted there is counted first. What the parts
keep is read by the server's threads, so it is copied in one go before it is walked.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from prometheus_client.registry import Collector

from tokenbus.producer.client.worker_status import WorkerPhase
from tokenbus.producer.contract.events import TOOL_CALLS
from tokenbus.producer.contract.keys import NUM_PRIORITIES
from tokenbus.producer.release import release
from tokenbus.producer.telemetry import worker_table as told
from tokenbus.producer.telemetry.scrape import Scrape
from tokenbus.worker.errors import DeathCause
from tokenbus.worker.held.held_job import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.metrics_core import Metric as Family

    from tokenbus.engine.types import EngineStats
    from tokenbus.producer.telemetry.histogram import Histogram
    from tokenbus.producer.telemetry.metric import Metric
    from tokenbus.worker.engine.current_engine import CurrentEngine
    from tokenbus.worker.held.pool_member import PoolMember
    from tokenbus.worker.life import WorkerLife
    from tokenbus.worker.settings import WorkerSettings

_FINISH_REASONS = ("stop", "length", TOOL_CALLS)
_PRIORITIES = tuple(map(str, range(NUM_PRIORITIES)))


class Exporter(Collector):
    """Answers scrapes from the first moment on; what is not there yet has no samples."""

    def __init__(self, settings: WorkerSettings, life: WorkerLife) -> None:
        self._settings = settings
        self._life = life
        self._model = "null" if settings.engine == "null" else settings.model
        self._parts: tuple[PoolMember, CurrentEngine, int] | None = None

    def attach(
        self, member: PoolMember, engine: CurrentEngine, *, model: str, total_pages: int
    ) -> None:
        """Tell of these parts from now on; `total_pages` are all that sequences can hold."""
        self._model = model
        self._parts = member, engine, total_pages

    def collect(self) -> Iterator[Family]:
        """Return everything as of now; called by the server's threads."""
        scrape = Scrape(told.WORKER, self._settings.pool, self._model)
        engine = self._settings.engine
        labels = ("worker", release(), platform.python_version(), engine)
        scrape.one(told.BUILD_INFO, 1, *labels)
        scrape.one(told.READY, int(self._life.is_ready))
        now = self._life.phase
        scrape.many(told.PHASE, {(phase.value,): int(phase is now) for phase in WorkerPhase})
        if self._parts is not None:
            member, current, total_pages = self._parts
            member.metrics.count()
            _jobs(scrape, member)
            _times(scrape, member)
            _engine(scrape, member, current)
            _tokens(scrape, member, current, total_pages)
            _publishing(scrape, member)
        yield from scrape.families()


def _jobs(scrape: Scrape, member: PoolMember) -> None:
    metrics = member.metrics
    held = {(each, phase.value): 0 for each in _PRIORITIES for phase in Phase}
    tokens = dict.fromkeys(_PRIORITIES, 0)
    for job in member.held_jobs:
        priority = str(job.pulled.priority)
        held[priority, job.phase.value] += 1
        if job.phase is Phase.RUNNING:
            tokens[priority] += job.prompt_tokens + job.last
    gone = Phase.GONE.value
    scrape.many(told.JOBS_HELD, {at: count for at, count in held.items() if at[1] != gone})
    scrape.many(told.RUNNING_TOKENS, {(at,): count for at, count in tokens.items()})
    ends = {(str(p), *rest): count for (p, *rest), count in dict(metrics.ends).items()}
    scrape.many(told.JOBS, ends)
    spent = {(str(p), *rest): count for (p, *rest), count in dict(metrics.job_tokens).items()}
    scrape.many(told.JOB_TOKENS, spent)
    scrape.many(told.CHOICES, {(reason,): metrics.choices[reason] for reason in _FINISH_REASONS})
    for metric, value in (
        (told.JOBS_PULLED, metrics.jobs_pulled),
        (told.RESUMES, metrics.jobs_resumed),
        (told.TAKEOVERS, metrics.jobs_reaped),
        (told.FENCED_WRITES, metrics.jobs_fenced),
        (told.PARKED, metrics.jobs_parked),
        (told.UNDONE, metrics.jobs_undone),
        (told.PULLS_SPARED, metrics.pulls_spared),
        (told.SUSPECTS_CLEARED, metrics.suspects_cleared),
    ):
        scrape.one(metric, value)
    scrape.one(told.INBOX, metrics.inbox_accepted, "accepted")
    scrape.one(told.INBOX, metrics.inbox_refused, "refused")


def _times(scrape: Scrape, member: PoolMember) -> None:
    metrics = member.metrics
    by_priority: tuple[tuple[Metric, Sequence[Histogram]], ...] = (
        (told.QUEUE_TIME, metrics.queue_time),
        (told.TTFT, metrics.ttft),
        (told.ITL, metrics.itl),
        (told.E2E, metrics.e2e),
    )
    for metric, histograms in by_priority:
        for priority, histogram in enumerate(histograms):
            scrape.histogram(metric, histogram, str(priority))
    scrape.histogram(told.STEP_TIME, metrics.step_time)


def _engine(scrape: Scrape, member: PoolMember, engine: CurrentEngine) -> None:
    outage = engine.outage
    scrape.one(told.ENGINE_ENDS_IN_A_ROW, outage.num_in_a_row if outage else 0)
    ends = member.metrics.engine_ends
    scrape.many(told.ENGINE_ENDS, {(cause.value,): ends[cause] for cause in DeathCause})
    scrape.one(told.ENGINE_RANKS, engine.num_ranks)
    scrape.one(told.ENGINE_RESTARTS, member.metrics.engine_restarts)


def _tokens(scrape: Scrape, member: PoolMember, engine: CurrentEngine, total_pages: int) -> None:
    scrape.one(told.TOKENS, member.metrics.tokens_logged, "logged")
    scrape.one(told.PREEMPTIONS, member.metrics.preemptions)
    stats = engine.stats()
    if stats is None:
        return
    scrape.one(told.TOKENS, stats.prompt_tokens_total, "prompt")
    scrape.one(told.TOKENS, stats.cached_tokens_total, "cached")
    scrape.one(told.TOKENS, stats.generated_tokens_total, "generated")
    scrape.one(told.TOKENS, stats.preempted_tokens_total, "preempted")
    asked = stats.prompt_tokens_total + stats.cached_tokens_total
    scrape.one(told.PREFIX_HIT_RATIO, stats.cached_tokens_total / max(1, asked))
    generated = max(1, stats.generated_tokens_total)
    scrape.one(told.PREEMPTED_RATIO, stats.preempted_tokens_total / generated)
    _drafts(scrape, stats)
    scrape.one(told.SEQUENCES, stats.num_running, "running")
    scrape.one(told.SEQUENCES, stats.num_waiting, "waiting")
    free, cached, shared = stats.free_pages, stats.evictable_pages, stats.shared_pages
    held = total_pages - free - cached - shared
    pages = {"free": free, "cached": cached, "shared": shared, "held": held}
    scrape.many(told.PAGES, {(state,): count for state, count in pages.items()})


def _drafts(scrape: Scrape, stats: EngineStats) -> None:
    for drafter, (drafted, accepted) in stats.drafts_total:
        scrape.one(told.DRAFT_TOKENS, accepted, drafter, "accepted")
        scrape.one(told.DRAFT_TOKENS, drafted - accepted, drafter, "rejected")
    accepted = sum(count.accepted for _, count in stats.drafts_total)
    scrape.one(told.TOKENS_PER_STEP, 1 + accepted / max(1, stats.decode_turns_total))


def _publishing(scrape: Scrape, member: PoolMember) -> None:
    metrics = member.metrics
    scrape.histogram(told.PUBLISH_LAG, metrics.publish_lag)
    scrape.one(told.COALESCING, metrics.hold_s)
    scrape.one(told.PUBLISH_WAIT, metrics.publish_wait_s)
    scrape.one(told.LOG_ENTRIES, metrics.log_entries)
    scrape.one(told.LOG_CALLS, metrics.log_calls)
    scrape.one(told.SESSIONS_LOST, member.session.num_losses)
