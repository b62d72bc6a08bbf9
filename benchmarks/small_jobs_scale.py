"""Small jobs on many cores: one server with one worker and with four, three masters of a cluster.

    python -P benchmarks/small_jobs_scale.py                     # for 16 cores
    python -P benchmarks/small_jobs_scale.py --mode results
    python -P benchmarks/small_jobs_scale.py --cluster redis-server

Null engine, 8 tokens in and 1 out, server with an append-only file that is synced once a second.
Every answer is checked; a job that is lost or wrong makes the exit code 1. Two tenants of equal
weight share the pool: `early` has queued four fifths of the jobs before `late` begins, in all three
priorities, and what is printed is the share of `late` in the jobs that ended while both waited (one
half is fair, 1 is first come, first served) and where the jobs of each priority ended (0 first, 1
last). A cluster has three pools, whose queues lie on three masters or on the one that there is,
each with workers and clients of its own. It listens on loopback only, and ends by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Run with -P, python leaves the script's own folder out.
sys.path.insert(0, str(Path(__file__).parent))

from redis.crc import key_slot
from small_jobs_stage import (
    NUM_SLOTS,
    Run,
    SideFailed,
    SideMissing,
    Stage,
    Tree,
    run_clients,
    server_binary,
)

from tokenbus.producer.contract.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Tree("here", {})
NUM_MASTERS = 3
WARM_UP = 64
# Of the jobs, and of each tenant's those of each priority.
EARLY_SHARE = 0.8
PRIORITY_SHARES = (0.1, 0.6, 0.3)


@dataclass(frozen=True, slots=True)
class Shape:
    """One row of the table."""

    name: str
    pools: tuple[str, ...]
    workers_each: int
    # Masters of a cluster; 0 is a server by itself.
    num_masters: int = 0


@dataclass(slots=True)
class Measured:
    """One run of a shape, and who ended when in it: (tenant, priority) for each time."""

    run: Run
    ends: list[tuple[float, str, int]]


def plan(num_jobs: int) -> list[dict[str, Any]]:
    """Return the jobs of one client in the order in which they are sent."""
    num_early = int(num_jobs * EARLY_SHARE)
    return [
        {"count": 1, "fields": {"tenant": tenant, "priority": priority}}
        for tenant, count in (("early", num_early), ("late", num_jobs - num_early))
        for priority in _priorities(count)
    ]


def _priorities(count: int) -> Iterator[int]:
    """Yield priorities by their shares, evenly mixed."""
    for number in range(count):
        # Steps of a golden ratio fill every share evenly, however many there are.
        place = number * 0.6180339887 % 1.0
        yield 0 if place < PRIORITY_SHARES[0] else 1 if place < 1 - PRIORITY_SHARES[2] else 2


def pools_on_masters(num_masters: int, count: int) -> tuple[str, ...]:
    """Return names of pools whose queues lie on different masters, in turn."""
    share = -(-NUM_SLOTS // num_masters)
    names: list[str] = []
    number = 0
    while len(names) < count:
        name = f"small-{number}"
        number += 1
        if key_slot(Keys(name).of("load").encode()) // share == len(names) % num_masters:
            names.append(name)
    return tuple(names)


class Scale:
    """Runs shapes."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args

    def run(self, shape: Shape) -> Measured:
        """Run a shape once. Raises: SideMissing, SideFailed."""
        args = self._args
        binary = args.cluster if shape.num_masters else server_binary(args.server)
        with Stage(binary, args.run_limit_s) as stage:
            url = (
                stage.start_cluster(shape.num_masters)
                if shape.num_masters
                else stage.start_server()
            )
            for pool in shape.pools:
                for _ in range(shape.workers_each):
                    stage.start_worker(HERE, self._settings(url, pool))
            num_clients = max(1, args.clients // len(shape.pools))
            jobs_each = args.jobs // (num_clients * len(shape.pools))
            children = [
                stage.start_side("tokenbus-client", self._client(url, pool, number, jobs_each))
                for pool in shape.pools
                for number in range(num_clients)
            ]
            try:
                run = run_clients(stage, children)
            except SideFailed as error:
                raise SideFailed(f"{shape.name}: {error}\n{stage.workers_said()}") from None
        parts = [part["fields"] for part in plan(jobs_each)]
        ends = sorted(
            (ended_s, fields["tenant"], fields["priority"])
            for outcome in run.outcomes
            for ended_s, fields in zip(outcome["ended"], parts, strict=True)
        )
        return Measured(run, ends)

    def _settings(self, url: str, pool: str) -> dict[str, object]:
        return {
            "redis_url": url,
            "pool": pool,
            "engine": "null",
            "log_level": "warning",
            "num_pages": 20_000,
            "max_num_seqs": 512,
            "null_tokens_per_s": self._args.tokens_per_s,
            "publishers": self._args.publishers,
        }

    def _client(self, url: str, pool: str, number: int, num_jobs: int) -> dict[str, Any]:
        return {
            "url": url,
            "pool": pool,
            "mode": self._args.mode,
            "plan": plan(num_jobs),
            "first": number * 10_000_000,
            "warm_up": WARM_UP,
            "output_tokens": 1,
            "latency": False,
        }


def late_share(ends: list[tuple[float, str, int]]) -> float:
    """Return the share of `late` among the jobs that ended while both tenants had jobs waiting.

    That is from the first end of `late` to the last of whoever was done first.
    """
    last = {tenant: at for at, tenant, _ in ends}
    first_late = next((at for at, tenant, _ in ends if tenant == "late"), 0.0)
    both = [tenant for at, tenant, _ in ends if first_late <= at <= min(last.values())]
    return both.count("late") / max(1, len(both))


def places(ends: list[tuple[float, str, int]]) -> dict[int, float]:
    """Return the median place of each priority's jobs among all, from 0 to 1."""
    ranks: dict[int, list[float]] = {}
    for rank, (_, _, priority) in enumerate(ends):
        ranks.setdefault(priority, []).append(rank / len(ends))
    return {priority: statistics.median(found) for priority, found in sorted(ranks.items())}


def tell(shape: Shape, found: list[Measured]) -> None:
    """Print the row of a shape."""
    rates = [each.run.jobs_per_s for each in found]
    middle = sorted(found, key=lambda each: each.run.jobs_per_s)[(len(found) - 1) // 2]
    spent = middle.run.cpu_us_per_job()
    server_share = middle.run.cpu_s["server"] / middle.run.seconds
    ranks = ", ".join(f"{priority}: {at:.2f}" for priority, at in places(middle.ends).items())
    print(f"{shape.name:34} best {max(rates):6.0f}  median {statistics.median(rates):6.0f} jobs/s")
    print(f"    CPU us per job: {', '.join(f'{kind} {us:.0f}' for kind, us in spent.items())};"
        f" servers {server_share:.0%} of a core")  # fmt: skip
    print(f"    `late` has {late_share(middle.ends):.0%} while both wait; places {ranks}",
        flush=True)  # fmt: skip


def shapes(args: argparse.Namespace) -> list[Shape]:
    """Return the rows to measure."""
    if args.cluster:
        pools = pools_on_masters(NUM_MASTERS, NUM_MASTERS)
        return [
            Shape("three pools, a cluster of 1 master", pools, 1, 1),
            Shape("three pools, a cluster of 3", pools, 1, NUM_MASTERS),
        ]
    return [
        Shape(f"one server, {count} worker{'s' if count > 1 else ''}", ("small",), count)
        for count in args.workers
    ]


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--jobs", type=int, default=30_000, help="of each run (default: %(default)s)")
    add("--workers", type=lambda text: [int(each) for each in text.split(",")], default=[1, 4],
        help="counts to try (default: 1,4)")  # fmt: skip
    add("--clients", type=int, default=6, help="client processes (default: %(default)s)")
    add("--mode", choices=("stream", "results"), default="stream",
        help="how clients take answers (default: %(default)s)")  # fmt: skip
    add("--cluster", metavar="BINARY", help="compare clusters of this redis-server instead")
    add("--server", help="the server binary (default: the one that tokenbus finds)")
    add("--rounds", type=int, default=3, help="of all rows in turn (default: %(default)s)")
    add("--publishers", default="auto", help="of a worker (default: %(default)s)")
    add("--tokens-per-s", type=float, default=1000.0,
        help="of each stream of the null engine (default: %(default)s)")  # fmt: skip
    add("--limit-s", type=float, default=540.0, help="time in all (default: %(default)s)")
    add("--run-limit-s", type=float, default=120.0, help="time of one run (default: %(default)s)")
    add("--json", type=Path, help="write all figures")
    return parser.parse_args()


def main() -> int:
    """Measure and print; return 1 if a job was lost or wrong."""
    args = parse()
    ends_s = time.monotonic() + args.limit_s
    rows = shapes(args)
    found: dict[str, list[Measured]] = {shape.name: [] for shape in rows}
    scale = Scale(args)
    print(f"{len(os.sched_getaffinity(0))} cores, {args.jobs} jobs a run, {args.mode}")
    try:
        for _ in range(args.rounds):
            for shape in rows:
                if time.monotonic() < ends_s - args.run_limit_s:
                    found[shape.name].append(scale.run(shape))
    except (SideFailed, SideMissing) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    measured = [shape for shape in rows if found[shape.name]]
    for shape in measured:
        tell(shape, found[shape.name])
    runs = [each.run for of_shape in found.values() for each in of_shape]
    num_lost = sum(sum(map(len, (out["ended"] for out in run.outcomes))) - run.num_ended
        for run in runs)  # fmt: skip
    num_wrong = sum(run.num_wrong for run in runs)
    medians = [statistics.median(m.run.jobs_per_s for m in found[s.name]) for s in measured]
    if len(medians) > 1:
        print(f"{measured[-1].name}: {medians[-1] / medians[0]:.2f} x {measured[0].name}")
    print(f"lost {num_lost}, wrong {num_wrong}")
    if args.json is not None:
        table = {
            shape.name: [
                {"jobs_per_s": m.run.jobs_per_s, "cpu_us_per_job": m.run.cpu_us_per_job(),
                 "late_share": late_share(m.ends), "places": places(m.ends)}
                for m in found[shape.name]
            ]
            for shape in rows
        }  # fmt: skip
        args.json.write_text(json.dumps(table, indent=1))
    return 1 if num_lost or num_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
