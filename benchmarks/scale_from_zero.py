"""An autoscaler from zero: workers by the seconds of backlog, and what that was worth.

    python -P benchmarks/scale_from_zero.py --trace FILE
    python -P benchmarks/scale_from_zero.py --arrivals bursts

A trace is JSON lines with `timestamp_ms`, `input_length` and `output_length`; its first half hour
passes at ten times its speed, lengths divided by eight. Without one, as many jobs come by chance:
in bursts, or more and more of them, with prompts and answers of lengths that have nothing to do
with each other. A stand-in for KEDA and Kubernetes
reads the ScaledObject of deploy/kubernetes and asks a real Prometheus what they would ask; workers
have the null engine. Printed are the replicas over time, cold starts, refusals, and at each minute
the gauge beside the time after which the last job that waited then was started, both in seconds of
the trace. A minute fits where they differ by 20 % at most, or is allowed where by `--least-s` at
most. The gauge knows the workers that are ready and those that start: one that tells too much is
told apart where the autoscaler added some before the last job was started. Nothing else excuses a
minute: neither workers that were removed, nor a gauge that tells too little. Most minutes have no
job that waits, and 0 beside 0 says little: those with a queue are counted by themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from scaling.scaled_object import ScaledObject  # noqa: E402
from scaling.scaled_run import scaled_pool  # noqa: E402

from tokenbus.producer.client.backlog import Assumed  # noqa: E402
from tokenbus.producer.server.embedded import start_private  # noqa: E402
from tokenbus.worker.bench.load.arrivals import TraceRow, read_trace  # noqa: E402
from tokenbus.worker.bench.options import BenchOptions  # noqa: E402

if TYPE_CHECKING:
    from scaling.scaled_run import ScaledRun

MANIFEST = ROOT / "deploy/kubernetes/components/autoscaling/scaled-object.yaml"
# Jobs a second of both patterns on average, and in a burst of a minute every five.
JOBS_PER_S, BURST_PER_S = 4.0, 14.0


def drawn_rows(arrivals: str, seconds: float) -> list[TraceRow]:
    """Draw jobs that come in bursts, or as a ramp: more and more until the end."""
    draw, at_s, rows = random.Random(5), 0.0, []
    calm_per_s = (5 * JOBS_PER_S - BURST_PER_S) / 4
    while (at_s := at_s + draw.expovariate(BURST_PER_S)) < seconds:
        per_s = 2 * JOBS_PER_S * at_s / seconds
        if arrivals == "bursts":
            per_s = BURST_PER_S if at_s % 300 >= 240 else calm_per_s
        if draw.random() < per_s / BURST_PER_S:
            prompt, output = draw.lognormvariate(4.5, 1.0), draw.lognormvariate(3.0, 0.8)
            rows.append(TraceRow(at_s, 1 + min(2000, int(prompt)), 1 + min(500, int(output))))
    return rows


def trace_rows(path: str, seconds: float, length_scale: float) -> list[TraceRow]:
    """Read the first seconds of a trace."""
    options = BenchOptions(trace=path, trace_s=seconds, length_scale=length_scale, arrival="trace")
    return read_trace(options)


def _print(run: ScaledRun, speed: float, least_s: float) -> int:
    print("replicas   " + ", ".join(f"{number} at {at:.0f} s" for at, number in run.replicas))
    starts = ", ".join(f"{each * speed:.0f}" for each in run.starts_s)
    print(f"starts     {run.num_cold_starts} cold; s until ready, as the trace's: {starts}")
    reasons = {job.reason for job in run.ended}
    print(f"jobs       {run.num_accepted} accepted, {len(run.refusals)} refused, ended {reasons}")
    print("minute  ready  waiting  gauge s  waited s  off")
    kinds = {"with a queue": Counter[str](), "without one": Counter[str]()}
    for minute, sample in enumerate(run.samples):
        waited = run.waited_s(sample.at_ms) * speed if sample.waiting_jobs else 0.0
        gauge = sample.backlog_s * speed
        off = abs(gauge - waited)
        kind = "off"
        if off <= 0.2 * waited:
            kind = "fits"
        elif off <= least_s:
            kind = "allowed"
        elif gauge > waited and run.has_grown(sample, waited):
            kind = "a worker was added"
        kinds["with a queue" if sample.waiting_jobs else "without one"][kind] += 1
        print(
            f"{minute:6d}  {sample.num_ready:5d}  {sample.waiting_jobs:7,d}  {gauge:7.1f}"
            f"  {waited:8.1f}  {off / waited if waited else 0:4.0%}  {kind}"
        )
    for name, counts in kinds.items():
        told = ", ".join(f"{number} {kind}" for kind, number in counts.most_common())
        print(f"minutes    {counts.total()} {name}: {told}")
    return 0


def main() -> int:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument("--trace", help="file of the trace")
    load.add_argument("--arrivals", choices=("bursts", "ramp"), help="jobs that come by chance")
    parser.add_argument("--trace-s", type=float, default=1800.0, help="seconds of it")
    parser.add_argument("--speed", type=float, default=10.0)
    parser.add_argument("--length-scale", type=float, default=8.0)
    parser.add_argument("--seats", type=int, default=32, help="sequences of a worker at a time")
    parser.add_argument("--tokens-per-s", type=float, default=25.0, help="of a sequence")
    parser.add_argument("--assumed-tokens-per-s", type=float, default=5000.0)
    parser.add_argument("--assumed-start-s", type=float, default=80.0, help="as the trace's")
    parser.add_argument("--least-s", type=float, default=5.0)
    args = parser.parse_args()
    rows = (
        drawn_rows(args.arrivals, args.trace_s)
        if args.arrivals
        else trace_rows(args.trace, args.trace_s, args.length_scale)
    )
    worker = {
        "max_num_seqs": args.seats,
        "null_tokens_per_s": args.tokens_per_s,
        "max_model_len": 16_384,
        "publishers": 0,
        "drain_deadline_s": 30 / args.speed,
    }
    assumed = Assumed(args.assumed_tokens_per_s, args.assumed_start_s / args.speed)
    server = start_private()
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            scaled_pool(
                server.url, Path(folder), ScaledObject.read(MANIFEST), speed=args.speed,
                worker=worker, assumed=assumed,
            ) as pool,
        ):  # fmt: skip
            run = asyncio.run(pool.serve(rows))
    finally:
        server.close()
    return _print(run, args.speed, args.least_s)


if __name__ == "__main__":
    sys.exit(main())
