"""Progress of a publisher: what it tells of its calls is what they were."""

from __future__ import annotations

from typing import Any

import pytest

from tokenbus.producer.telemetry.histogram import Histogram
from tokenbus.worker.metrics import Metrics
from tokenbus.worker.publishing.progress import ProgressCounter


def test_lags_and_waits_are_those_of_each_entry() -> None:
    """Entries of one step and of several are counted as one by one, call by call."""
    told: list[Any] = []
    progress_counter = ProgressCounter(told.append, 0.0)
    calls = [([7.0] * 5, 7.001, 7.002), ([7.0, 7.5, 7.0, 7.9], 8.0, 8.25), ([], 9.0, 9.1)]
    apart, waits_s = Histogram(), 0.0
    progress_counter.began(1, 0.3)
    for sinces, started_at, ended_at in calls:
        for since in sinces:
            apart.add(ended_at - since)
            waits_s += started_at - since
        progress_counter.called(len(sinces), sinces, started_at, ended_at, 0.001)
    progress_counter.ended(2, 0.7)
    progress_counter.report()
    # Nothing is left to tell of.
    progress_counter.report()
    metrics = Metrics()
    for progress in told:
        metrics.published(progress)
    metrics.count()
    assert len(told) == len(calls) + 1
    assert metrics.publish_lag.counts == apart.counts
    assert metrics.publish_lag.sum_s == pytest.approx(apart.sum_s)
    assert metrics.publish_wait_s == pytest.approx(waits_s)
    assert (metrics.log_entries, metrics.log_calls, metrics.tokens_logged) == (9, 3, 9)
    assert (metrics.ttft[1].sum_s, metrics.e2e[2].sum_s, metrics.hold_s) == (0.3, 0.7, 0.001)
