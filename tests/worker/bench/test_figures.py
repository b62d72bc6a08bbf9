"""Figures of made-up job times whose answers are known by hand; charts and pages of them."""

from __future__ import annotations

from array import array
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import pytest

from tokenbus.worker.bench.capacity import sweep_users
from tokenbus.worker.bench.load.messages import JobReport
from tokenbus.worker.bench.measure.charts import Line, chart
from tokenbus.worker.bench.measure.distribution import Distribution
from tokenbus.worker.bench.measure.figures import Figures, Measured, sum_up
from tokenbus.worker.bench.measure.files import write_report
from tokenbus.worker.bench.measure.processes import CpuTimes
from tokenbus.worker.bench.measure.report import Report
from tokenbus.worker.bench.measure.sampler import Counters, Sample
from tokenbus.worker.bench.options import BenchOptions
from tokenbus.worker.engine.step_log import HandoverTimes

if TYPE_CHECKING:
    from pathlib import Path

START_S = 100.0


def _report(number: int, arrivals_s: list[float], counts: list[int], **values: object) -> JobReport:
    made = JobReport(
        number=number,
        phase="all",
        tenant=f"tenant-{number % 2}",
        priority=1,
        seed=number,
        late_s=0.0,
        num_refusals=0,
        submitted_s=START_S,
        accepted_s=START_S + 0.001,
        ended_s=START_S + (arrivals_s or [0.0])[-1],
        outcome="length",
        prompt_tokens=10,
        cached_tokens=5,
        output_tokens=sum(counts),
        arrivals=array("d", [START_S + at_s for at_s in arrivals_s]).tobytes(),
        counts=array("I", counts).tobytes(),
        fault=None,
    )
    return msgspec.structs.replace(made, **values)


@pytest.fixture
def figures() -> Figures:
    """Sum up two good jobs, a slow one, a refused one and a lost one."""
    reports = [
        _report(0, [0.1, 0.2, 0.4], [1, 1, 2]),
        _report(1, [0.2, 0.3], [1, 1], num_refusals=2),
        _report(2, [2.0, 4.0], [1, 1]),
        _report(3, [], [], outcome="refused", num_refusals=1, accepted_s=None, ended_s=None),
        _report(4, [0.5], [1], outcome="lost", fault="JobLost: gone", ended_s=None),
    ]
    handover_times = {
        0: HandoverTimes(START_S + 0.04, START_S + np.array([0.09, 0.19, 0.35, np.nan]))
    }
    return sum_up(
        Measured(
            options=BenchOptions(),
            start_s=START_S,
            span_s=4.0,
            reports=reports,
            handover_times=handover_times,
            samples=[
                Sample(0.0, 3, 300, 2, 7, 1, 10, 1000),
                Sample(0.25, 1, 100, 2, 9, 1, 10, 900),
            ],
            counters=Counters(tokens_logged=9, log_entries=6),
            cpu=CpuTimes(server=0.9, worker=1.8, engine=0.45),
            reader_cpu_s=0.09,
        )
    )


def test_latencies_are_those_of_the_journeys(figures: Figures) -> None:
    """Each sample has the values one computes by hand; tokens of one event share its time."""
    assert figures.ttft_ms.count == 4
    assert (figures.ttft_ms.p50, figures.ttft_ms.max) == pytest.approx((200, 2000))
    # Gaps: 100, 200, 0 of job 0; 100 of job 1; 2000 of job 2.
    assert figures.itl_ms.count == 5
    assert (figures.itl_ms.p50, figures.itl_ms.max) == pytest.approx((100, 2000))
    assert figures.tpot_ms.p50 == pytest.approx(100)
    assert figures.e2e_ms.count == 3
    assert figures.publish_lag_ms.count == 3
    assert figures.publish_lag_ms.max == pytest.approx(50)
    assert figures.first_token_overhead_ms.p50 == pytest.approx(50)


def test_counts_and_rates_are_those_of_the_journeys(figures: Figures) -> None:
    """Goodput counts jobs within both targets, and CPU is shared out over the tokens."""
    assert figures.outcomes == {"length": 3, "refused": 1, "lost": 1}
    assert (figures.output_tokens, figures.duration_s) == (9, 4.0)
    assert figures.tokens_per_s == pytest.approx(2.2, abs=0.06)
    # Within 1,000 ms to the first token and 50 ms between: none; the mean gaps are 100 and more.
    assert figures.goodput_share == 0.0
    assert (figures.num_lost, figures.num_faults) == (1, 1)
    assert figures.faults == ["job 4: JobLost: gone"]
    assert (figures.refusals.refused_at_first, figures.refusals.given_up) == (2, 1)
    assert (figures.refusals.came_back, figures.refusals.accepted_at) == (1, [0, 1])
    assert figures.tokens_per_log_entry == 1.5
    assert figures.cpu_us_per_token["server"] == pytest.approx(1e5)
    assert figures.cpu_us_per_token["reader"] == pytest.approx(1e4)
    assert figures.tokens_by_second[0] == (0.0, 7.0)
    assert figures.by_tenant["tenant-1"].jobs == 2
    assert figures.peak_pages_used == 9


def test_goodput_needs_both_targets(figures: Figures) -> None:
    """With a target of 150 ms between tokens two of the five jobs are good."""
    job_times = [_report(0, [0.1, 0.2, 0.4], [1, 1, 2]), _report(1, [1.5, 1.6], [1, 1])]
    options = figures.options.replace(itl_target_ms=150)
    measured = Measured(
        options, START_S, 4.0, job_times, {}, [], Counters(), CpuTimes(), reader_cpu_s=0.0
    )
    assert sum_up(measured).goodput_share == 0.5


async def test_sweep_finds_the_largest_count_that_holds(figures: Figures) -> None:
    """Rising counts until one is too slow, then halves of the gap; 37 users are the most."""
    tried: list[int] = []
    measured = Measured(
        figures.options, START_S, 4.0, [], {}, [], Counters(), CpuTimes(), reader_cpu_s=0.0
    )

    async def run(options: BenchOptions, title: str) -> Figures:
        assert title == f"{options.users} users"
        assert options.arrival == "closed"
        tried.append(options.users)
        slow_s = 0.9 if options.users <= 37 else 1.1
        reports = [_report(0, [slow_s, slow_s + 0.04], [1, 1])]
        return sum_up(msgspec.structs.replace(measured, options=options, reports=reports))

    points, best = await sweep_users(BenchOptions(slo_users=(64, 16, 32, 512)), run)
    assert tried[:3] == [16, 32, 64]
    assert best in (36, 37)
    assert len(tried) == len(set(tried)) < 10
    assert [point.users for point in points if not point.holds] == [u for u in tried if u > 37]


def test_run_without_a_job_has_figures() -> None:
    """Nothing arrived: every figure is zero, none is missing."""
    empty = sum_up(
        Measured(BenchOptions(), START_S, 1.0, [], {}, [], Counters(), CpuTimes(), reader_cpu_s=0)
    )
    assert (empty.output_tokens, empty.ttft_ms, empty.tokens_by_second) == (0, Distribution(), [])


def test_percentiles_are_nearest_rank() -> None:
    """A percentile is one of the values, the smallest that enough of them do not exceed."""
    found = Distribution.of_seconds([0.001 * value for value in range(1, 101)])
    assert (found.p50, found.p90, found.p95, found.p99, found.max) == (50, 90, 95, 99, 100)


@pytest.mark.parametrize("log_x", [False, True])
@pytest.mark.parametrize("points", [[], [(0.0, 0.0)], [(1.0, 5.0)], [(0.1, 1.0), (900.0, 3e6)]])
def test_chart_is_a_picture_whatever_the_points(
    points: list[tuple[float, float]], log_x: bool
) -> None:
    """Well-formed, every coordinate inside the frame."""
    picture = chart("a < b", "s", [Line("x & y", points)], log_x=log_x)
    root = ET.fromstring(picture)  # noqa: S314 -- we drew it
    texts = [element.text for element in root.iter("text")]
    assert "a < b" in texts
    for element in root.iter("text"):
        assert 0 <= float(element.attrib["x"]) <= 640


def test_page_needs_nothing_but_itself(figures: Figures, tmp_path: Path) -> None:
    """The page names every figure and loads nothing; the JSON can be read back."""
    report = Report(command=["tokenbus", "<&>"], machine={"cores": "2"}, runs=[figures])
    write_report(report, str(tmp_path / "figures.json"), str(tmp_path / "page.html"))
    read = msgspec.json.decode((tmp_path / "figures.json").read_bytes(), type=Report)
    assert read.runs[0].ttft_ms == figures.ttft_ms
    assert not read.is_sound
    text = (tmp_path / "page.html").read_text()
    assert "http" not in text
    assert text.count("<svg") == 4
    assert "JobLost" in text
    assert "&lt;&amp;&gt;" in text
    parser = HTMLParser()
    parser.feed(text)
