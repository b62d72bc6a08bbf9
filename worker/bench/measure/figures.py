"""The figures of a run, from its job times, counters and samples; also the form of `--json`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tokenbus.worker.bench.measure.distribution import Distribution, cdf_ms
from tokenbus.worker.bench.measure.job_times import JobTimes, gaps_s, known
from tokenbus.worker.bench.measure.processes import CpuTimes  # noqa: TC001 -- msgspec reads it
from tokenbus.worker.bench.measure.sampler import Counters, Sample  # noqa: TC001 -- msgspec reads it
from tokenbus.worker.bench.options import BenchOptions  # noqa: TC001 -- msgspec reads it

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tokenbus.worker.bench.load.messages import JobReport
    from tokenbus.worker.engine.step_log import HandoverTimes, Times

_MAX_FAULTS = 20
# Tokens/s over time are counted in bins of this width.
RATE_BIN_S = 1.0
# What is drawn as a curve.
_CURVES = ("ttft_ms", "itl_ms", "e2e_ms", "publish_lag_ms")


# What jobs are grouped by, and how a group is named.
_GROUPINGS: dict[str, Callable[[JobReport], str]] = {
    "phase": lambda report: report.phase,
    "priority": lambda report: str(report.priority),
    "phase_and_priority": lambda report: f"{report.phase}/{report.priority}",
    "tenant": lambda report: report.tenant,
}


class Measured(msgspec.Struct):
    """What was seen during a run; times of reports and hand-offs are CLOCK_MONOTONIC.

    Jobs came from `start_s` on for `span_s`. `num_plain` counts the jobs of plain readers and the
    events that these saw.
    """

    options: BenchOptions
    start_s: float
    span_s: float
    reports: list[JobReport]
    handover_times: dict[int, HandoverTimes]
    samples: list[Sample]
    counters: Counters
    cpu: CpuTimes
    reader_cpu_s: float
    num_plain: tuple[int, int] = (0, 0)


class Group(msgspec.Struct, frozen=True):
    """The service that one tenant, priority or phase got."""

    jobs: int
    finished: int
    output_tokens: int
    ttft_ms: Distribution
    e2e_ms: Distribution


class RefusalFigures(msgspec.Struct, frozen=True):
    """Jobs by the tries they needed: `accepted_at[k]` were accepted at try k + 1 after a refusal.

    `came_back` are those of the refused that tried again at all.
    """

    refused_at_first: int
    came_back: int
    accepted_at: list[int]
    given_up: int


class Figures(msgspec.Struct):
    """All figures of one run; see `distribution` for how samples are summed up."""

    options: BenchOptions
    outcomes: dict[str, int]
    faults: list[str]
    num_faults: int
    num_lost: int
    duration_s: float
    output_tokens: int
    prompt_tokens: int
    cached_tokens: int
    tokens_per_s: float
    steady_tokens_per_s: float
    jobs_per_s: float
    steady_jobs_per_s: float
    goodput_jobs_per_s: float
    goodput_share: float
    submit_ms: Distribution
    ttft_ms: Distribution
    itl_ms: Distribution
    tpot_ms: Distribution
    e2e_ms: Distribution
    publish_lag_ms: Distribution
    first_token_overhead_ms: Distribution
    late_ms: Distribution
    refusals: RefusalFigures
    tokens_per_event: float
    tokens_per_log_entry: float
    log_calls: int
    preemptions: int
    preempted_tokens: int
    cpu_us_per_token: dict[str, float]
    cpu_us_per_job: dict[str, float]
    plain_jobs: int
    plain_events: int
    peak_waiting_jobs: int
    peak_pages_used: int
    peak_server_bytes: int
    by_phase: dict[str, Group]
    by_priority: dict[str, Group]
    by_phase_and_priority: dict[str, Group]
    by_tenant: dict[str, Group]
    tokens_by_second: list[tuple[float, float]]
    samples: list[Sample]
    cdf_ms: dict[str, list[tuple[float, float]]]


def sum_up(measured: Measured) -> Figures:
    """Take all figures of a run."""
    options = measured.options
    job_times = [JobTimes(r, measured.handover_times.get(r.seed)) for r in measured.reports]
    warm_at_s = measured.start_s + options.warm_up_s
    warm = [job for job in job_times if job.report.submitted_s >= warm_at_s]
    samples_s = _samples_s(warm)
    num_tokens = sum(job.report.output_tokens for job in job_times)
    good = sum(j.meets(options.ttft_target_ms, options.itl_target_ms) for j in warm)
    begin_s, end_s = _span(measured)
    duration_s = max(end_s - begin_s, 1e-9)
    warm_s = max(end_s - max(begin_s, warm_at_s), 1e-9)
    rates = _tokens_by_second(job_times, measured.start_s)
    faults = _faults(measured.reports)
    outcomes = Counter(report.outcome for report in measured.reports)
    return Figures(
        options=options,
        outcomes=dict(outcomes),
        faults=faults[:_MAX_FAULTS],
        num_faults=len(faults),
        num_lost=outcomes["lost"] + outcomes["unfinished"],
        duration_s=round(duration_s, 4),
        output_tokens=num_tokens,
        prompt_tokens=sum(r.prompt_tokens for r in measured.reports),
        cached_tokens=sum(r.cached_tokens for r in measured.reports),
        tokens_per_s=round(num_tokens / duration_s, 1),
        steady_tokens_per_s=_steady(rates, options, measured.span_s or duration_s),
        jobs_per_s=round(sum(j.finished for j in job_times) / duration_s, 3),
        steady_jobs_per_s=_steady_jobs(measured),
        goodput_jobs_per_s=round(good / warm_s, 3),
        goodput_share=round(good / max(1, len(warm)), 4),
        **_several(warm, samples_s),
        refusals=_refusals(measured.reports),
        tokens_per_event=_ratio(num_tokens, sum(len(j.counts) for j in job_times)),
        tokens_per_log_entry=_ratio(measured.counters.tokens_logged, measured.counters.log_entries),
        log_calls=measured.counters.log_calls,
        preemptions=measured.counters.preemptions,
        preempted_tokens=measured.counters.preempted_tokens,
        cpu_us_per_token=_cpu_us(measured, num_tokens),
        cpu_us_per_job=_cpu_us(measured, sum(job.finished for job in job_times)),
        plain_jobs=measured.num_plain[0],
        plain_events=measured.num_plain[1],
        peak_waiting_jobs=max((s.waiting_jobs for s in measured.samples), default=0),
        peak_pages_used=max((s.pages_used for s in measured.samples), default=0),
        peak_server_bytes=max((s.server_bytes for s in measured.samples), default=0),
        tokens_by_second=rates,
        samples=measured.samples,
        cdf_ms={name: cdf_ms(samples_s[name]) for name in _CURVES},
    )


def _faults(reports: Sequence[JobReport]) -> list[str]:
    return [
        f"job {report.number}: {report.fault}" for report in reports if report.fault is not None
    ]


def _samples_s(job_times: Sequence[JobTimes]) -> dict[str, Times]:
    """Return the samples that figures sum up, by the figure's name."""
    reports = [job.report for job in job_times]
    accepted = [r for r in reports if r.accepted_s is not None and r.num_refusals == 0]
    return {
        "submit_ms": known([r.accepted_s - r.submitted_s for r in accepted if r.accepted_s]),
        "ttft_ms": known([job.ttft_s for job in job_times]),
        "itl_ms": gaps_s(job_times),
        "tpot_ms": known([job.tpot_s for job in job_times]),
        "e2e_ms": known([job.e2e_s for job in job_times]),
        "publish_lag_ms": np.concatenate([np.empty(0), *(j.lags_s for j in job_times)]),
        "first_token_overhead_ms": known([j.first_token_overhead_s for j in job_times]),
        "late_ms": known([r.late_s for r in reports]),
    }


def _span(measured: Measured) -> tuple[float, float]:
    """Return the first submit and the last terminal event."""
    begin_s = min((r.submitted_s for r in measured.reports), default=measured.start_s)
    ends = [r.ended_s for r in measured.reports if r.ended_s is not None]
    return begin_s, max(ends, default=begin_s)


def _tokens_by_second(job_times: Sequence[JobTimes], start_s: float) -> list[tuple[float, float]]:
    """Return points (seconds from the start, tokens/s received), one for each second."""
    times = np.concatenate([np.empty(0), *(j.arrivals_s for j in job_times)]) - start_s
    counts = np.concatenate([np.empty(0), *(j.counts for j in job_times)])
    if not len(times):
        return []
    num_bins = int(times.max() // RATE_BIN_S) + 1
    edges = np.arange(num_bins + 1) * RATE_BIN_S
    sums, _ = np.histogram(times, edges, weights=counts)
    return [
        (float(edge), round(float(total) / RATE_BIN_S, 1))
        for edge, total in zip(edges, sums, strict=False)
    ]


def _steady(rates: list[tuple[float, float]], options: BenchOptions, span_s: float) -> float:
    """Return tokens/s while jobs kept coming: without warm-up and without the drain."""
    inside = [rate for at_s, rate in rates if options.warm_up_s <= at_s <= span_s - RATE_BIN_S]
    return round(sum(inside) / len(inside), 1) if inside else 0.0


def _steady_jobs(measured: Measured) -> float:
    """Return jobs/s that ended while jobs kept coming."""
    begin_s = measured.start_s + measured.options.warm_up_s
    end_s = measured.start_s + measured.span_s
    ended = [r.ended_s for r in measured.reports if r.ended_s is not None]
    num_ended = sum(begin_s <= at_s < end_s for at_s in ended)
    return round(num_ended / (end_s - begin_s), 4) if end_s > begin_s else 0.0


def _refusals(reports: Sequence[JobReport]) -> RefusalFigures:
    refused = [report for report in reports if report.num_refusals]
    tries = Counter(r.num_refusals for r in refused if r.accepted_s is not None)
    most = max(tries, default=0)
    return RefusalFigures(
        refused_at_first=len(refused),
        came_back=sum(r.num_refusals > 1 or r.accepted_s is not None for r in refused),
        accepted_at=[tries[number] for number in range(1, most + 1)],
        given_up=sum(report.accepted_s is None for report in refused),
    )


def _cpu_us(measured: Measured, count: int) -> dict[str, float]:
    """Share the CPU time of each kind of process out over tokens or jobs."""
    cpu = msgspec.structs.asdict(measured.cpu) | {"reader": measured.reader_cpu_s}
    return {kind: round(spent * 1e6 / max(1, count), 2) for kind, spent in cpu.items()}


def _several(warm: Sequence[JobTimes], samples_s: Mapping[str, Times]) -> dict[str, Any]:
    """Return the figures that there are several of, by name: distributions, and those of groups."""
    several: dict[str, Any] = {
        name: Distribution.of_seconds(values) for name, values in samples_s.items()
    }
    return several | {f"by_{name}": _groups(warm, key) for name, key in _GROUPINGS.items()}


def _groups(job_times: Sequence[JobTimes], key: Callable[[JobReport], str]) -> dict[str, Group]:
    members: dict[str, list[JobTimes]] = {}
    for job in job_times:
        members.setdefault(key(job.report), []).append(job)
    return {
        name: Group(
            jobs=len(group),
            finished=sum(job.finished for job in group),
            output_tokens=sum(job.report.output_tokens for job in group),
            ttft_ms=Distribution.of_seconds(known([job.ttft_s for job in group])),
            e2e_ms=Distribution.of_seconds(known([job.e2e_s for job in group])),
        )
        for name, group in sorted(members.items())
    }


def _ratio(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0


def as_json(value: Any) -> bytes:
    """Return figures as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1)
