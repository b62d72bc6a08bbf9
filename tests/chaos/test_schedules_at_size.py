"""The protocol alone, under more schedules than processes could act out."""

from __future__ import annotations

import os
import sys

import pytest
from rides.scale import NUM_JOBS, SEED, long_row
from storm.run import run_many

SCHEDULES_PER_JOB = 100


@long_row
def test_random_schedules_by_the_thousand() -> None:
    """At 200 jobs a case, 20,000 schedules of lost, late and doubled calls break no promise.

    Faults: deaths, pauses, restarts, rollbacks, and time that passes all TTLs.
    """
    first = SEED % 1_000_000 * 1000
    num_cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    broken = run_many(first, SCHEDULES_PER_JOB * NUM_JOBS, num_cores)
    if broken is not None:
        pytest.fail(str(broken))
