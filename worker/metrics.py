"""Counters of a worker: plain numbers, read by the exporter, the status key and the logs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tokenbus.producer.contract.address import whole_tenant
from tokenbus.producer.contract.keys import NUM_PRIORITIES
from tokenbus.producer.telemetry.histogram import BOUNDS_S, Histogram
from tokenbus.producer.telemetry.tenant_labels import TenantLabels
from tokenbus.worker.errors import DeathCause

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tokenbus.engine.types import EngineStats


# Where nothing says how many tenants have labels of their own.
_MAX_TENANTS = 20
_MAX_UNCOUNTED = 1000
# All durations are up to the last.
_BOUNDS_S = np.array((*BOUNDS_S, np.inf), np.float32)


def _by_priority() -> tuple[Histogram, ...]:
    return tuple(Histogram() for _ in range(NUM_PRIORITIES))


class PublisherProgress(Protocol):
    """What a publisher tells of its work; `worker.messages.publishing.Progress` is one.

    Times are in seconds. `lags` counts entries by buckets of a `Histogram`, `firsts` and `ends` are
    pairs of a job's priority and its time since the submit.
    """

    logged_tokens: int
    entries: int
    calls: int
    waits_s: float
    lag_sum_s: float
    lags: dict[int, int]
    hold_s: float
    firsts: list[tuple[int, float]]
    ends: list[tuple[int, float]]


@dataclass(slots=True)
class Metrics:
    """Counters since the start; gauges are read where they live.

    `ends` and `job_tokens` are by priority, label of the tenant, and outcome or kind. Four kinds of
    times are by priority.
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
    # Steps that `step_time` does not have yet: noting one takes half of what counting it does.
    uncounted_s: list[float] = field(default_factory=list)
    queue_time: tuple[Histogram, ...] = field(default_factory=_by_priority)
    ttft: tuple[Histogram, ...] = field(default_factory=_by_priority)
    itl: tuple[Histogram, ...] = field(default_factory=_by_priority)
    e2e: tuple[Histogram, ...] = field(default_factory=_by_priority)

    def stepped(self, stats: EngineStats, step_s: float) -> None:
        """Note a step and the engine's load after it."""
        self.uncounted_s.append(step_s)
        if len(self.uncounted_s) >= _MAX_UNCOUNTED:
            self.count_steps()
        running, waiting = stats.num_running, stats.num_waiting
        # Peaks are rare, and this is done for every step.
        if running > self.peak_running or waiting > self.peak_waiting:
            self.peak_running = max(self.peak_running, running)
            self.peak_waiting = max(self.peak_waiting, waiting)

    def count_steps(self) -> None:
        """Count the steps that are noted; to be asked once a second, on the event loop."""
        self.uncounted_s.sort()
        self.step_time.add_sorted(self.uncounted_s)
        self.uncounted_s.clear()

    def streamed(self, priority: int, gaps_s: NDArray[np.float32], sum_s: float) -> None:
        """Count the gaps between the tokens of a job, in ascending order."""
        ends = gaps_s.searchsorted(_BOUNDS_S, "right").tolist()
        self.itl[priority].add_up_to_bounds(ends, sum_s)

    def published(self, progress: PublisherProgress) -> None:
        """Count what a publisher has done."""
        self.tokens_logged += progress.logged_tokens
        self.log_entries += progress.entries
        self.log_calls += progress.calls
        self.hold_s = progress.hold_s
        self.publish_wait_s += progress.waits_s
        self.publish_lag.add_counts(progress.lags, progress.lag_sum_s)
        for priority, seconds in progress.firsts:
            self.ttft[priority].add(seconds)
        for priority, seconds in progress.ends:
            self.e2e[priority].add(seconds)

    def left(self, priority: int, tenant: str, outcome: str, **tokens: int) -> None:
        """Count a job that leaves this worker, and the tokens of an ended one by kind.

        A share is counted for its tenant.
        """
        label = self.tenants.of(whole_tenant(tenant))
        self.ends[priority, label, outcome] += 1
        for kind, num_tokens in tokens.items():
            self.job_tokens[priority, label, kind] += num_tokens

    def as_dict(self) -> dict[str, int]:
        """Return all counters by name; ends of engines by their causes."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        causes = {f"engine_ends_{cause}": self.engine_ends[cause] for cause in DeathCause}
        return {name: value for name, value in values.items() if isinstance(value, int)} | causes
