"""The demo's arithmetic: percentiles, clocks and sums."""

from __future__ import annotations

import json

import pytest

from tokenbus.worker.demo.figures import BusFigures, JobClock, Percentiles
from tokenbus.worker.demo.report import DemoReport
from tokenbus.worker.demo.taxi import TaxiRide


@pytest.mark.parametrize(
    ("values_s", "p50", "p95"),
    [
        ([], 0.0, 0.0),
        ([0.010], 10.0, 10.0),
        ([0.020, 0.010], 10.0, 20.0),
        ([i / 1000 for i in range(1, 101)], 50.0, 95.0),
        ([i / 1000 for i in range(100, 0, -1)], 50.0, 95.0),
    ],
)
def test_percentiles_are_nearest_rank(values_s: list[float], p50: float, p95: float) -> None:
    """A percentile is a value that was measured, whatever the order of the sample."""
    assert Percentiles.of_seconds(values_s) == Percentiles(p50, p95)


def _clock(submitted_s: float, *arrivals: tuple[int, float], reason: str = "stop") -> JobClock:
    clock = JobClock(submitted_s)
    for num_tokens, now_s in arrivals:
        clock.tokens_arrived(num_tokens, now_s)
    clock.ended_s = arrivals[-1][1] if arrivals else submitted_s
    clock.finish_reason = reason
    return clock


def test_tokens_of_one_event_share_its_time() -> None:
    """ITL is what the reader saw: tokens that came together have no gap between them."""
    clock = _clock(1.0, (1, 1.5), (2, 1.75))
    assert clock.ttft_s == 0.5
    assert clock.gaps_s == [0.25, 0.0]


def test_job_without_a_token_counts_in_no_latency() -> None:
    """A job that failed before its first token is not finished and shifts no percentile."""
    figures = BusFigures.of(
        [_clock(0.0, (1, 0.5), (1, 1.0)), _clock(0.0, reason="failed")], peak_running=1
    )
    assert (figures.jobs, figures.finished, figures.output_tokens) == (2, 1, 2)
    assert figures.ttft_ms == Percentiles(500.0, 500.0)
    assert figures.tokens_per_s == 2.0


def test_rate_runs_from_first_submit_to_last_event() -> None:
    """The bus is timed as a whole: from the first job handed in to the last answer complete."""
    figures = BusFigures.of([_clock(10.0, (4, 11.0)), _clock(10.5, (6, 15.0))], peak_running=2)
    assert figures.tokens_per_s == 2.0


def test_hit_rate_is_cached_over_prompt_tokens() -> None:
    """The prefix-cache rate counts tokens, not jobs."""
    first, second = _clock(0.0, (1, 1.0)), _clock(0.0, (1, 1.0))
    first.num_prompt_tokens, second.num_prompt_tokens, second.num_cached_tokens = 100, 60, 40
    assert BusFigures.of([first, second], peak_running=2).prefix_hit_rate == 0.25


def test_json_has_the_promised_fields() -> None:
    """Scripts that read the figures find every field, and null where the taxi was skipped."""
    bus = BusFigures.of([_clock(0.0, (3, 1.0), (3, 2.0))], peak_running=1)
    figures = json.loads(DemoReport(bus, TaxiRide("sdpa", 1, 10, 8.0)).dump())
    assert list(figures) == [
        "jobs", "finished", "output_tokens", "tokens_per_s", "ttft_ms", "itl_ms",
        "peak_running", "prefix_hit_rate", "taxi_tokens_per_s", "ratio",
    ]  # fmt: skip
    assert set(figures["ttft_ms"]) == set(figures["itl_ms"]) == {"p50", "p95"}
    assert (figures["taxi_tokens_per_s"], figures["ratio"]) == (1.25, 2.4)
    skipped = json.loads(DemoReport(bus).dump())
    assert skipped["taxi_tokens_per_s"] is None
    assert skipped["ratio"] is None
