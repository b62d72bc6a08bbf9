"""The figures of a run as rows, and as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenbus.worker.bench.measure.distribution import Distribution
    from tokenbus.worker.bench.measure.figures import Figures

MARKS = ("p50", "p90", "p95", "p99", "max")
DISTRIBUTIONS = {
    "submit_ms": "submit, round trip",
    "ttft_ms": "TTFT",
    "itl_ms": "ITL",
    "tpot_ms": "TPOT",
    "e2e_ms": "E2E",
    "publish_lag_ms": "engine hand-off to callback",
    "first_token_overhead_ms": "TTFT beyond the engine's own",
    "late_ms": "submit later than planned",
}


def rows(figures: Figures) -> Iterator[tuple[str, str]]:
    """Yield the figures that are single numbers, with their names."""
    outcomes = ", ".join(f"{count} {name}" for name, count in sorted(figures.outcomes.items()))
    yield "jobs", outcomes or "none"
    yield "output tokens", f"{figures.output_tokens} in {figures.duration_s:.2f} s"
    yield "tokens/s", f"{figures.tokens_per_s:.1f}, steady {figures.steady_tokens_per_s:.1f}"
    yield "jobs/s", f"{figures.jobs_per_s:.1f}, steady {figures.steady_jobs_per_s:.1f}"
    cached = figures.cached_tokens / max(1, figures.prompt_tokens)
    yield "prompt tokens", f"{figures.prompt_tokens}, {cached:.0%} from the prefix cache"
    options = figures.options
    yield (
        f"goodput (TTFT ≤ {options.ttft_target_ms:g}, ITL ≤ {options.itl_target_ms:g} ms)",
        f"{figures.goodput_jobs_per_s:.2f} jobs/s, {figures.goodput_share:.1%} of jobs",
    )
    refusals = figures.refusals
    if refusals.refused_at_first:
        yield (
            "refused at first",
            f"{refusals.refused_at_first}; accepted after 1, 2, … refusals:"
            f" {', '.join(map(str, refusals.accepted_at))}; given up {refusals.given_up}",
        )
    yield (
        "tokens per log entry, per event",
        f"{figures.tokens_per_log_entry:.2f}, {figures.tokens_per_event:.2f}",
    )
    yield "CPU us per token", _shares(figures.cpu_us_per_token)
    per_job = figures.cpu_us_per_job
    yield "CPU us per job", f"{_shares(per_job)}, all {sum(per_job.values()):.1f}"
    if figures.plain_jobs:
        yield "plain readers", f"{figures.plain_events} events of {figures.plain_jobs} jobs"
    yield (
        "most waiting, pages, server memory",
        f"{figures.peak_waiting_jobs} jobs, {figures.peak_pages_used} pages,"
        f" {figures.peak_server_bytes / 2**20:.1f} MiB",
    )
    yield "preempted", f"{figures.preemptions} times, {figures.preempted_tokens} tokens"
    yield "lost, faults", f"{figures.num_lost}, {figures.num_faults}"


def _shares(cpu_us: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in cpu_us.items())


def summary_table(figures: Figures) -> Table:
    """Return single numbers for the terminal."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows(figures):
        table.add_row(name, value)
    return table


def latency_table(figures: Figures) -> Table:
    """Return the distributions for the terminal."""
    table = Table(box=None, pad_edge=False)
    table.add_column("ms")
    for name in MARKS:
        table.add_column(name, justify="right")
    for sample, label in distributions(figures):
        table.add_row(label, *(f"{value:.2f}" for value in marks(sample)))
    return table


def distributions(figures: Figures) -> Iterator[tuple[Distribution, str]]:
    """Yield the samples that are not empty, with their names."""
    for name, label in DISTRIBUTIONS.items():
        sample: Distribution = getattr(figures, name)
        if sample.count:
            yield sample, label


def marks(sample: Distribution) -> tuple[float, ...]:
    """Return the figures of a row under `MARKS`."""
    return sample.p50, sample.p90, sample.p95, sample.p99, sample.max
