"""How exact seconds of backlog can be: what one would tell who knows all but the future.

    python -P benchmarks/backlog_floor.py --trace FILE
    python -P benchmarks/backlog_floor.py --arrivals ramp --seats 16

The half hour of `scale_from_zero.py` in a simulation: jobs in order, seats that are taken for as
long as a job generates, the stand-in for the autoscaler, and starts whose length is drawn. At each
minute two oracles tell when the last waiting job will be begun. Both know every job's length, who
holds a seat until when, and who starts; none knows who will be started later. One knows how long
starts take in the mean, the other how long each will take. What the first misses, no gauge can
tell; times are real seconds, as the simulation passes at ten times the trace's speed.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent))

from scale_from_zero import MANIFEST, drawn_rows, trace_rows
from scaling.scaled_object import SYNC_S, Autoscaler, ScaledObject

from tokenbus.producer.client.backlog import PROMPT_SHARE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.worker.bench.load.arrivals import TraceRow

SPEED, TICK_S, TOKENS_PER_S = 10.0, 0.02, 25.0
LEAST_S, MOST_OFF = 0.5, 0.2


@dataclass(slots=True)
class _Worker:
    began_s: float
    ready_s: float
    ends: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Pool:
    """The pool at a moment; `begun` has when jobs came and were begun, `told` what oracles said."""

    seats: int
    mean_start_s: float
    now_s: float = 0.0
    waiting: deque[TraceRow] = field(default_factory=deque)
    workers: list[_Worker] = field(default_factory=list)
    begun: list[tuple[float, float]] = field(default_factory=list)
    told: list[tuple[float, list[float]]] = field(default_factory=list)

    def pull(self) -> None:
        """Let jobs end, and give free seats to those that wait."""
        for worker in self.workers:
            worker.ends = [end for end in worker.ends if end > self.now_s]
            while worker.ready_s <= self.now_s and self.waiting and len(worker.ends) < self.seats:
                row = self.waiting.popleft()
                self.begun.append((row.at_s / SPEED, self.now_s))
                worker.ends.append(self.now_s + row.output_tokens / TOKENS_PER_S)

    def look(self) -> None:
        """Note what both oracles say."""
        told = [self._last_begun_s(knows_starts=knows) for knows in (False, True)]
        self.told.append((self.now_s, told if self.waiting else [0.0, 0.0]))

    def _last_begun_s(self, *, knows_starts: bool) -> float:
        free: list[float] = []
        for worker in self.workers:
            ready_s = worker.ready_s
            if ready_s > self.now_s and not knows_starts:
                ready_s = max(self.now_s, worker.began_s + self.mean_start_s)
            empty = [max(self.now_s, ready_s)] * (self.seats - len(worker.ends))
            free += [*worker.ends, *empty]
        free = free or [self.now_s + self.mean_start_s] * self.seats
        heapq.heapify(free)
        begun_s = self.now_s
        for row in self.waiting:
            begun_s = max(begun_s, free[0])
            heapq.heapreplace(free, begun_s + row.output_tokens / TOKENS_PER_S)
        return begun_s - self.now_s

    def values(self) -> list[float]:
        """Return the figures of the triggers: seconds of one worker, pages, whether jobs run."""
        work = sum(row.output_tokens + PROMPT_SHARE * row.input_tokens for row in self.waiting)
        held = sum(len(worker.ends) for worker in self.workers)
        return [SPEED * work / (self.seats * TOKENS_PER_S), 0.0, float(bool(held or self.waiting))]


def simulated(rows: Sequence[TraceRow], seats: int, starts: Sequence[float], seed: int) -> _Pool:
    """Run the half hour to its end."""
    draw, autoscaler = random.Random(seed), Autoscaler(ScaledObject.read(MANIFEST))
    pool, coming = _Pool(seats, statistics.mean(starts)), deque(rows)
    polled_s = synced_s = float("-inf")
    while coming or pool.waiting or autoscaler.replicas:
        pool.now_s += TICK_S
        now_s = pool.now_s * SPEED
        while coming and coming[0].at_s <= now_s:
            pool.waiting.append(coming.popleft())
        pool.pull()
        if now_s >= 60 * len(pool.told):
            pool.look()
        if now_s - polled_s >= autoscaler.scaled.polling_s:
            polled_s = now_s
            autoscaler.poll(now_s, pool.values())
        if now_s - synced_s >= SYNC_S:
            synced_s = now_s
            ready = [worker for worker in pool.workers if worker.ready_s <= pool.now_s]
            autoscaler.sync(now_s, len(ready), pool.values())
        while len(pool.workers) < autoscaler.replicas:
            pool.workers.append(_Worker(pool.now_s, pool.now_s + draw.uniform(*starts)))
        while len(pool.workers) > autoscaler.replicas:
            pool.workers.pop()
    return pool


def _fitting(pool: _Pool) -> list[int]:
    """Count the minutes that each oracle tells right."""
    counts = [0, 0]
    for at_s, told in pool.told:
        last_s = max((begun for came, begun in pool.begun if came <= at_s), default=0.0)
        waited_s = max(0.0, last_s - at_s)
        for oracle, seconds in enumerate(told):
            counts[oracle] += abs(seconds - waited_s) <= max(LEAST_S, MOST_OFF * waited_s)
    return counts


def main() -> None:
    """Print how many minutes each oracle tells right, in the mean over draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument("--trace", help="file of the trace")
    load.add_argument("--arrivals", choices=("bursts", "ramp"), help="jobs that come by chance")
    parser.add_argument("--seats", type=int, default=32, help="sequences of a worker at a time")
    parser.add_argument("--starts-s", type=float, nargs=2, default=(4.0, 6.2), help="real seconds")
    parser.add_argument("--draws", type=int, default=12)
    args = parser.parse_args()
    rows = (
        drawn_rows(args.arrivals, 1800.0) if args.arrivals else trace_rows(args.trace, 1800.0, 8.0)
    )
    pools = [simulated(rows, args.seats, args.starts_s, seed) for seed in range(args.draws)]
    means = [statistics.mean(each) for each in zip(*map(_fitting, pools), strict=True)]
    print(f"minutes {statistics.mean(len(pool.told) for pool in pools):.1f}")
    for name, mean in zip(("knows all but starts", "knows starts too"), means, strict=True):
        print(f"{name:20} {mean:.1f} fit")


if __name__ == "__main__":
    main()
