"""The report of one call of the bench, as it is kept."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tokenbus.worker.bench.measure.figures import Figures  # noqa: TC001 - msgspec reads it

if TYPE_CHECKING:
    from collections.abc import Iterator


class SloPoint(msgspec.Struct, frozen=True):
    """A number of users, what they saw at the 95th percentile, and whether that is good enough."""

    users: int
    holds: bool
    ttft_p95_ms: float
    tpot_p95_ms: float
    tokens_per_s: float
    num_faults: int


class Offline(msgspec.Struct, frozen=True):
    """The same jobs in the same engine without a queue; tokens/s of each run, call to return."""

    tokens_per_s: list[float]
    output_tokens: int
    jobs: int = 0

    def jobs_per_s(self, tokens_per_s: float) -> float:
        """Return the jobs/s of a rate of tokens."""
        return tokens_per_s * self.jobs / max(1, self.output_tokens)


class Report(msgspec.Struct):
    """Everything that one call of the bench found out.

    `tax` is the best run through the queue over the best offline, in tokens/s, `median_tax` the
    median of the runs over the median of the offline runs. `capacity_jobs_per_s` is what
    `--load` was measured against. `users_at_slo` is the largest number that held, 0 for none.
    """

    command: list[str]
    machine: dict[str, str]
    runs: list[Figures]
    capacity_jobs_per_s: float | None = None
    offline: Offline | None = None
    tax: float | None = None
    median_tax: float | None = None
    slo: list[SloPoint] = []
    users_at_slo: int | None = None

    @property
    def is_sound(self) -> bool:
        """Tell whether no job was lost and no check found anything."""
        return all(run.num_faults == 0 and run.num_lost == 0 for run in self.runs)

    @property
    def best(self) -> Figures:
        """The fastest run."""
        return max(self.runs, key=lambda run: run.tokens_per_s)


def extra_lines(report: Report) -> Iterator[str]:
    """Yield a sentence for each thing that was measured beside the runs."""
    if report.capacity_jobs_per_s is not None:
        yield f"capacity, measured first: {report.capacity_jobs_per_s:.2f} jobs/s"
    for point in report.slo:
        verdict = "holds" if point.holds else "does not hold"
        yield (
            f"{point.users} users: p95 TTFT {point.ttft_p95_ms:.0f} ms, TPOT"
            f" {point.tpot_p95_ms:.1f} ms, {point.tokens_per_s:.0f} tokens/s, {verdict}"
        )
    if report.users_at_slo is not None:
        yield f"users at SLO: {report.users_at_slo}"
    if report.offline is not None:
        yield from _tax_lines(report, report.offline)


def _tax_lines(report: Report, offline: Offline) -> Iterator[str]:
    """Yield the rates of all runs, and last the share that is left of the offline rate."""
    rates, queued = offline.tokens_per_s, [run.tokens_per_s for run in report.runs]
    yield (
        f"offline {', '.join(f'{rate:.1f}' for rate in rates)} tokens/s, through the queue"
        f" {', '.join(f'{rate:.1f}' for rate in queued)}"
    )
    best = offline.jobs_per_s(max(rates))
    yield (
        f"jobs/s: offline {best:.1f}, through the queue {report.best.jobs_per_s:.1f};"
        f" share of offline: best {report.tax or 0:.1%}, median {report.median_tax or 0:.1%}"
    )


def describe_machine(server_version: str) -> dict[str, str]:
    """Name what figures depend on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": str(cores),
        "system": platform.system(),
        "python": platform.python_version(),
        "server": server_version,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    found = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.processor())
