"""Counters of a worker: plain numbers, read by the exporter, the status key and the logs.

What comes with each step, call or job is noted where it happens, and counted together once a second
and whenever somebody asks: to note it takes a tenth of what it takes to count it there.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import TYPE_CHECKING, Protocol, TypeVar

from tokenbus.producer.contract.address import whole_tenant
from tokenbus.producer.contract.keys import NUM_PRIORITIES
from tokenbus.producer.telemetry.histogram import Histogram, bucket_of
from tokenbus.producer.telemetry.tenant_labels import TenantLabels
from tokenbus.worker.errors import DeathCause
from tokenbus.worker.token_moments import NO_MOMENTS, TokenMoments, count_gaps

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenbus.engine.types import EngineStats
    from tokenbus.producer.contract.events import Finish

N = TypeVar("N")

# Where nothing says how many tenants have labels of their own.
_MAX_TENANTS = 20
# Steps that are noted while nobody asks: a worker without a session may take many.
_MAX_UNCOUNTED = 1000


def _by_priority() -> tuple[Histogram, ...]:
    return tuple(Histogram() for _ in range(NUM_PRIORITIES))


class PublisherProgress(Protocol):
    """What a publisher tells of its work; `worker.messages.publishing.Progress` is one.

    Times are in seconds. `calls` that wrote to logs have the moments at which the first tokens of
    their entries came, and those at which they began and ended; `firsts` and `ends` are pairs of a
    job's priority and its time since the submit.
    """

    logged_tokens: int
    calls: list[tuple[list[float], float, float]]
    hold_s: float
    firsts: list[tuple[int, float]]
    ends: list[tuple[int, float]]


@dataclass(slots=True)
class Metrics:
    """Counters since the start, right after `count`; gauges are read where they live.

    Notes are taken on the event loop, and counted in any thread. `ends` and `job_tokens` are by
    priority, label of the tenant, and outcome or kind. Four kinds of times are by priority.
    """

    jobs_pulled: int = 0
    jobs_finished: int = 0
    jobs_failed: int = 0
    jobs_cancelled: int = 0
    jobs_expired: int = 0
    jobs_requeued: int = 0
    jobs_resumed: int = 0
    jobs_fenced: int = 0
    jobs_reaped: int = 0
    jobs_undone: int = 0
    jobs_parked: int = 0
    pulls_spared: int = 0
    inbox_accepted: int = 0
    inbox_refused: int = 0
    tokens_logged: int = 0
    log_entries: int = 0
    log_calls: int = 0
    sessions_lost: int = 0
    suspects_cleared: int = 0
    engine_deaths: int = 0
    engine_restarts: int = 0
    preemptions: int = 0
    peak_running: int = 0
    peak_waiting: int = 0
    engine_ends: Counter[DeathCause] = field(default_factory=Counter)
    # Of finished jobs, by what `Finish.finish_reason_of` says of each choice.
    choices: Counter[str] = field(default_factory=Counter)
    tenants: TenantLabels = field(default_factory=lambda: TenantLabels(_MAX_TENANTS))
    ends: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    job_tokens: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    hold_s: float = 0.0
    publish_wait_s: float = 0.0
    publish_lag: Histogram = field(default_factory=Histogram)
    step_time: Histogram = field(default_factory=Histogram)
    queue_time: tuple[Histogram, ...] = field(default_factory=_by_priority)
    ttft: tuple[Histogram, ...] = field(default_factory=_by_priority)
    itl: tuple[Histogram, ...] = field(default_factory=_by_priority)
    e2e: tuple[Histogram, ...] = field(default_factory=_by_priority)

    # What is noted and not counted yet. Only `count` takes from these, one thread at a time.
    _steps: deque[tuple[EngineStats, float]] = field(default_factory=deque)
    _progress: deque[PublisherProgress] = field(default_factory=deque)
    _gone: deque[tuple[int, str, str, Finish | None, TokenMoments]] = field(default_factory=deque)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def stepped(self, stats: EngineStats, step_s: float) -> None:
        """Note a step and the engine's load after it."""
        steps = self._steps
        steps.append((stats, step_s))
        if len(steps) >= _MAX_UNCOUNTED:
            self.count()

    def published(self, progress: PublisherProgress) -> None:
        """Note what a publisher has done."""
        self._progress.append(progress)

    def left(
        self,
        priority: int,
        tenant: str,
        outcome: str,
        finish: Finish | None = None,
        tokens_at: TokenMoments = NO_MOMENTS,
    ) -> None:
        """Note a job that leaves this worker; an ended one has a finish and the moments of tokens.

        A share is counted for its tenant.
        """
        self._gone.append((priority, tenant, outcome, finish, tokens_at))

    def count(self) -> None:
        """Count all that is noted; any thread may ask."""
        with self._counting:
            if self._steps:
                self._count_steps(_taken(self._steps))
            if self._progress:
                self._count_progress(_taken(self._progress))
            if self._gone:
                self._count_gone(_taken(self._gone))

    def _count_steps(self, steps: Sequence[tuple[EngineStats, float]]) -> None:
        self.step_time.add_sorted(sorted([step_s for _, step_s in steps]))
        self.peak_running = max(self.peak_running, *[stats.num_running for stats, _ in steps])
        self.peak_waiting = max(self.peak_waiting, *[stats.num_waiting for stats, _ in steps])

    def _count_progress(self, progress: Sequence[PublisherProgress]) -> None:
        self.hold_s = progress[-1].hold_s
        self.tokens_logged += sum([each.logged_tokens for each in progress])
        for priority, seconds in chain.from_iterable([each.firsts for each in progress]):
            self.ttft[priority].add(seconds)
        for priority, seconds in chain.from_iterable([each.ends for each in progress]):
            self.e2e[priority].add(seconds)
        self._count_calls([*chain.from_iterable([each.calls for each in progress])])

    def _count_calls(self, calls: Sequence[tuple[list[float], float, float]]) -> None:
        """Count how long entries waited for their call and for its end."""
        counts = self.publish_lag.counts
        lag_sum_s = waits_s = 0.0
        for sinces, started_at, ended_at in calls:
            num = len(sinces)
            # As a rule all came with one step, or at least within one bucket.
            if num and sinces.count(since := sinces[0]) == num:
                lag_s = ended_at - since
                counts[bucket_of(lag_s)] += num
                lag_sum_s += num * lag_s
                waits_s += num * (started_at - since)
            elif num:
                sum_s = sum(sinces)
                lag_sum_s += num * ended_at - sum_s
                waits_s += num * started_at - sum_s
                least, most = bucket_of(ended_at - max(sinces)), bucket_of(ended_at - min(sinces))
                alike = {sinces[0]: num} if least == most else Counter(sinces)
                for since, num_alike in alike.items():
                    counts[bucket_of(ended_at - since)] += num_alike
        self.log_calls += len(calls)
        self.log_entries += sum([len(sinces) for sinces, _, _ in calls])
        self.publish_wait_s += waits_s
        self.publish_lag.sum_s += lag_sum_s

    def _count_gone(
        self, jobs: Sequence[tuple[int, str, str, Finish | None, TokenMoments]]
    ) -> None:
        alike: dict[tuple[int, str, str], list[tuple[Finish | None, TokenMoments]]]
        alike = defaultdict(list)
        for priority, tenant, outcome, finish, moments in jobs:
            alike[priority, tenant, outcome].append((finish, moments))
        by_priority: dict[int, list[TokenMoments]] = defaultdict(list)
        for (priority, tenant, outcome), those in alike.items():
            label = self.tenants.of(whole_tenant(tenant))
            self.ends[priority, label, outcome] += len(those)
            by_priority[priority] += [moments for _, moments in those if moments]
            finishes = [finish for finish, _ in those if finish is not None]
            if finishes:
                self._count_finishes(priority, label, outcome, finishes)
        for priority, tokens_at in by_priority.items():
            self.itl[priority].add_counts(*count_gaps(tokens_at))
        self._count_outcomes(outcome for _, _, outcome, _, _ in jobs)

    def _count_finishes(
        self, priority: int, label: str, outcome: str, finishes: Sequence[Finish]
    ) -> None:
        usages = [finish.usage for finish in finishes]
        for kind, num_tokens in (
            ("prompt", sum([usage.prompt_tokens for usage in usages])),
            ("cached", sum([usage.cached_tokens for usage in usages])),
            ("generated", sum([usage.completion_tokens for usage in usages])),
        ):
            self.job_tokens[priority, label, kind] += num_tokens
        if outcome == "finished":
            reasons = chain.from_iterable([finish.finish_reasons for finish in finishes])
            self.choices.update(reasons)

    def _count_outcomes(self, outcomes: Iterable[str]) -> None:
        num = Counter(outcomes)
        self.jobs_finished += num["finished"]
        self.jobs_failed += num["failed"]
        self.jobs_cancelled += num["cancelled"]
        self.jobs_expired += num["expired"]
        self.jobs_requeued += num["requeued"]

    def as_dict(self) -> dict[str, int]:
        """Return all counters by name, as of now; ends of engines by their causes."""
        self.count()
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        causes = {f"engine_ends_{cause}": self.engine_ends[cause] for cause in DeathCause}
        return {name: value for name, value in values.items() if isinstance(value, int)} | causes


def _taken(notes: deque[N]) -> list[N]:
    """Take the notes that there are; more may come meanwhile."""
    return [notes.popleft() for _ in range(len(notes))]
