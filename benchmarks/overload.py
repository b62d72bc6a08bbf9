"""Five times more jobs than a worker can do, for two minutes: nobody is lost, nothing slows down.

Clients that are refused come back when they were told to, a little spread out. Prints how many of
them are accepted at the first and by the second try, and the tokens per second against the same
run's plateau; the exit code is 1 where a bar is missed.

    python -P benchmarks/overload.py --duration-s 120
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from typing import TYPE_CHECKING

from rich.console import Console

from tokenbus.worker.bench.deployment import Deployment
from tokenbus.worker.bench.measure.tables import latency_table, summary_table
from tokenbus.worker.bench.options import BenchOptions
from tokenbus.worker.bench.progress import RunProgress
from tokenbus.worker.bench.run import run_load

if TYPE_CHECKING:
    from tokenbus.worker.bench.measure.figures import Figures

FIRST_TRY, SECOND_TRY, PLATEAU = 0.80, 0.97, 0.95
OVERLOAD = 5
TENANTS = 50
PROMPT_TOKENS, OUTPUT_TOKENS = 64, (40, 60)
# What may wait: as much as the worker does in this time.
QUEUE_S = 20.0
# Before the overload the worker is nearly full, as one in use is, so that its rate is known.
CALM_S = 20.0
CALM_LOAD = 0.9
# The plateau is the median over windows of this length within the overload.
WINDOW_S = 10


def _options(args: argparse.Namespace) -> BenchOptions:
    """Return a load of five times what the worker's token rate allows."""
    jobs_per_s = args.tokens_per_s / (sum(OUTPUT_TOKENS) / 2)
    tokens_per_job = PROMPT_TOKENS + OUTPUT_TOKENS[1]
    return BenchOptions(
        worker={
            "null_total_tokens_per_s": args.tokens_per_s,
            "null_tokens_per_s": 50.0,
            "max_num_seqs": 64,
        },
        arrival="burst",
        rate=CALM_LOAD * jobs_per_s,
        calm_s=CALM_S,
        burst_factor=OVERLOAD / CALM_LOAD,
        burst_s=args.duration_s,
        duration_s=CALM_S + args.duration_s,
        tenants=TENANTS,
        prompt_tokens=(PROMPT_TOKENS, PROMPT_TOKENS),
        output_tokens=OUTPUT_TOKENS,
        max_pool_tokens=int(QUEUE_S * jobs_per_s * tokens_per_job),
        retries=10,
        patience_s=args.patience_s,
        drain_s=args.patience_s + 60,
        lag=False,
    )


def _bars(figures: Figures, duration_s: float) -> list[tuple[str, float, float]]:
    """Return (what, measured, at least) of every bar."""
    # Whoever was told to wait for longer than its patience never came back and is not counted.
    num_back = max(1, figures.refusals.came_back)
    accepted_at = figures.refusals.accepted_at
    end_s = CALM_S + duration_s
    rates = [rate for at_s, rate in figures.tokens_by_second if CALM_S + 1 <= at_s < end_s]
    windows = [
        statistics.fmean(rates[first : first + WINDOW_S])
        for first in range(0, len(rates) - WINDOW_S + 1, WINDOW_S)
    ]
    slowest = min(windows) / statistics.median(windows)
    return [
        ("accepted at the first try after a refusal", sum(accepted_at[:1]) / num_back, FIRST_TRY),
        ("accepted by the second", sum(accepted_at[:2]) / num_back, SECOND_TRY),
        ("slowest ten seconds over the plateau", slowest, PLATEAU),
        ("accepted jobs that ended", float(figures.num_lost + figures.num_faults == 0), 1.0),
    ]


async def _measure(options: BenchOptions, console: Console) -> Figures:
    async with Deployment(options) as deployment:
        with RunProgress(console, "overload", plain=not console.is_terminal) as progress:
            return await run_load(deployment, options, progress.show)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens-per-s", type=float, default=1500)
    parser.add_argument("--duration-s", type=float, default=120)
    parser.add_argument("--patience-s", type=float, default=40)
    args = parser.parse_args()
    console = Console(highlight=False)
    figures = asyncio.run(_measure(_options(args), console))
    console.print(summary_table(figures))
    console.print(latency_table(figures))
    is_met = True
    for name, measured, least in _bars(figures, args.duration_s):
        is_met = is_met and measured >= least
        console.print(f"{name}: {measured:.3f} (at least {least:g})")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
