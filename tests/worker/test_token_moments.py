"""Token moments: gaps of many jobs, counted together, are those of each alone."""

from __future__ import annotations

import random
from array import array
from itertools import pairwise

import pytest

from tokenbus.producer.telemetry.histogram import Histogram
from tokenbus.worker.token_moments import NO_MOMENTS, TokenMoments, count_gaps


@pytest.mark.parametrize("num_parts", [1, 4], ids="parts{}".format)
@pytest.mark.parametrize("num_more", [0, 3], ids="more{}".format)
def test_gaps_counted_together_are_those_of_each_job(num_parts: int, num_more: int) -> None:
    """Jobs of two arrays of steps, some with one token, some that missed steps; and one with none.

    The steps may grow: what is counted is not.
    """
    draw, alone, jobs = random.Random(num_parts), Histogram(), [NO_MOMENTS]
    for _ in range(2):
        steps, now = array("d"), 0.0
        for _ in range(300):
            now += draw.choice((0.0004, 0.0005, 0.003, 0.04, 2.5, 4000.0))
            steps.append(now)
        for _ in range(20):
            borders = sorted(draw.sample(range(300), 2 * draw.randint(1, num_parts)))
            borders[-1] = draw.choice((borders[-1], borders[-2] + 1))
            jobs.append(TokenMoments(steps, borders, draw.randint(0, num_more)))
    for job in jobs:
        for before, after in pairwise(job.listed()):
            alone.add(after - before)
    counts, sum_s = count_gaps(jobs)
    for job in jobs[1:]:
        job._steps.append(1e9)
    together = Histogram()
    together.add_counts(counts, sum_s)
    assert together.counts == alone.counts
    assert together.sum_s == pytest.approx(alone.sum_s)
    assert count_gaps([NO_MOMENTS]) == ({}, 0.0)
