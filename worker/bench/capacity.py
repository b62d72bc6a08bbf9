"""Capacity of a deployment: the rate of jobs while it is kept full, and users at SLO."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.worker.bench.load.arrivals import read_trace
from tokenbus.worker.bench.measure.report import SloPoint
from tokenbus.worker.errors import SettingsInvalid

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tokenbus.worker.bench.measure.figures import Figures
    from tokenbus.worker.bench.options import BenchOptions

    Run = Callable[[BenchOptions, str], Awaitable[Figures]]

# How long a stage is kept full to measure its rate, and how much of that is left out.
PROBE_S = 20.0
PROBE_WARM_UP_S = 5.0
# More users than rows, so that nothing waits for a user to come back.
_USERS_PER_ROW = 1.5
_DEFAULT_ROWS = 256
# The run index of the probe: its pages and seeds are nobody else's.
_PROBE_RUN_IDX = 900
# Bisection ends where the counts are this close, as a share of the smaller.
_NEAR = 0.05


async def measure_capacity(options: BenchOptions, run: Run) -> float:
    """Return the jobs per second that the stage ends while it is kept full.

    Raises: SettingsInvalid if nothing ends within the time.
    """
    rows = int(options.worker.get("max_num_seqs", _DEFAULT_ROWS)) * options.workers
    probe = options.replace(
        arrival="closed",
        users=int(rows * _USERS_PER_ROW),
        duration_s=PROBE_S,
        warm_up_s=PROBE_WARM_UP_S,
        jobs=None,
        ramp_s=0.0,
        run_idx=_PROBE_RUN_IDX,
    )
    figures = await run(probe, "capacity")
    if figures.steady_jobs_per_s <= 0:
        raise SettingsInvalid(f"--load: no job ended within {PROBE_S:g} s, give a rate instead")
    return figures.steady_jobs_per_s


def scaled(options: BenchOptions, capacity_jobs_per_s: float) -> BenchOptions:
    """Return options whose arrivals ask for `load` times the capacity; a peak goes on top."""
    wanted = (options.load or 1.0) * capacity_jobs_per_s
    if options.arrival != "trace":
        return options.replace(rate=wanted)
    rows = read_trace(options)
    span_s = max(rows[-1].at_s - rows[0].at_s, 1e-9)
    return options.replace(time_scale=wanted / (len(rows) / span_s))


async def sweep_users(options: BenchOptions, run: Run) -> tuple[list[SloPoint], int]:
    """Find the largest number of users whose 95th percentiles stay within the targets.

    The counts of `slo_users` are tried in rising order until one does not hold; then the gap before
    it is halved until it is narrow. Returns all points and the largest count that held.
    """
    points: list[SloPoint] = []

    async def holds(users: int) -> bool:
        idx = options.run_idx + len(points)
        trial = options.replace(arrival="closed", users=users, run_idx=idx)
        points.append(_judge(trial, await run(trial, f"{users} users")))
        return points[-1].holds

    best, failed = 0, None
    for users in sorted(options.slo_users):
        if not await holds(users):
            failed = users
            break
        best = users
    while failed is not None and failed - best > max(1, _NEAR * best):
        middle = (best + failed) // 2
        if await holds(middle):
            best = middle
        else:
            failed = middle
    return points, best


def _judge(options: BenchOptions, figures: Figures) -> SloPoint:
    ttft, tpot = figures.ttft_ms.p95, figures.tpot_ms.p95
    num_faults = figures.num_faults + figures.num_lost
    is_within = ttft <= options.ttft_target_ms and tpot <= options.itl_target_ms
    return SloPoint(
        users=options.users,
        holds=is_within and num_faults == 0 and figures.ttft_ms.count > 0,
        ttft_p95_ms=ttft,
        tpot_p95_ms=tpot,
        tokens_per_s=figures.steady_tokens_per_s,
        num_faults=num_faults,
    )
