"""How exact seconds of backlog can be: what one would tell who knows all but the future.

    python -P benchmarks/backlog_floor.py --trace FILE
    python -P benchmarks/backlog_floor.py --arrivals ramp --seats 16

The half hour of `scale_from_zero.py` in a simulation: jobs in order, seats that are taken for as
long as a job generates, the stand-in for the autoscaler, and starts whose length is drawn. At each
minute with a queue four tell when its last job will be begun. None knows who will be started later.

| by the rate    | the gauge where it knows no seats, with the rate as it is to the last digit    |
| by the seats   | the gauge: since when jobs run, how long others did, what waits in all         |
| all but starts | an oracle: each job's length, each seat, how long starts take in the mean      |
| starts too     | another, that knows how long each start will take                              |

What the first oracle misses, no gauge can tell; times are real seconds, as the simulation passes at
ten times the trace's speed. Workers are told of from the moment on in which they are started.
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

from tokenbus.producer.client.backlog import PROMPT_SHARE, DrainRate
from tokenbus.producer.client.seats.seats import EndedSeat, HeldSeat, Seats, SeatTimes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.worker.bench.load.arrivals import TraceRow

SPEED, TICK_S, TOKENS_PER_S = 10.0, 0.02, 25.0
LEAST_S, MOST_OFF = 0.5, 0.2
TELLERS = ("by the rate", "by the seats", "all but starts", "starts too")
# As the gauge does: so many ended jobs, which waited for so long.
NUM_ENDED, WAITED_S = 128, 0.05


@dataclass(frozen=True, slots=True)
class _Run:
    """A job in a seat."""

    began_s: float
    end_s: float
    tokens: int
    waited_s: float


@dataclass(slots=True)
class _Worker:
    began_s: float
    ready_s: float
    runs: list[_Run] = field(default_factory=list)


@dataclass(slots=True)
class _Pool:
    """The pool at a moment; `begun` has when jobs came and were begun, `told` what was said."""

    seats: int
    rate: DrainRate
    now_s: float = 0.0
    waiting: deque[TraceRow] = field(default_factory=deque)
    workers: list[_Worker] = field(default_factory=list)
    begun: list[tuple[float, float]] = field(default_factory=list)
    ended: deque[_Run] = field(default_factory=lambda: deque(maxlen=NUM_ENDED))
    told: list[tuple[float, list[float]]] = field(default_factory=list)
    num_looks: int = 0

    def pull(self) -> None:
        """Let jobs end, and give free seats to those that wait."""
        for worker in self.workers:
            self.ended += sorted(
                (run for run in worker.runs if run.end_s <= self.now_s), key=lambda run: run.end_s
            )
            worker.runs = [run for run in worker.runs if run.end_s > self.now_s]
            while worker.ready_s <= self.now_s and self.waiting and len(worker.runs) < self.seats:
                row = self.waiting.popleft()
                came_s, now_s, tokens = row.at_s / SPEED, self.now_s, row.output_tokens
                self.begun.append((came_s, now_s))
                end_s = now_s + tokens / TOKENS_PER_S
                worker.runs.append(_Run(now_s, end_s, tokens, now_s - came_s))

    def look(self) -> None:
        """Note what is told of a queue."""
        self.num_looks += 1
        if not self.waiting:
            return
        ready = [worker for worker in self.workers if worker.ready_s <= self.now_s]
        starting_for_s = [
            self.now_s - worker.began_s for worker in self.workers if worker.ready_s > self.now_s
        ]
        by_rate = self.rate.seconds_until_begun(self._work, len(ready), starting_for_s)
        by_seats = self._by_seats(ready, self.rate.ready_in_s(len(ready), starting_for_s))
        told = [by_rate, by_rate if by_seats is None else by_seats]
        told += [self._last_begun_s(knows_starts=knows) for knows in (False, True)]
        self.told.append((self.now_s, told))

    @property
    def _work(self) -> float:
        return sum(row.output_tokens + PROMPT_SHARE * row.input_tokens for row in self.waiting)

    def _by_seats(self, ready: list[_Worker], ready_in_s: list[float]) -> float | None:
        times = SeatTimes.of(
            [
                EndedSeat(run.end_s - run.began_s, run.tokens, run.tokens)
                for run in self.ended
                if run.waited_s >= WAITED_S
            ]
        )
        if times is None:
            return None
        runs = [run for worker in ready for run in worker.runs]
        held = tuple(HeldSeat(self.now_s - run.began_s, run.tokens) for run in runs)
        num_free = len(ready) * self.seats - len(held)
        tokens = sum(row.output_tokens for row in self.waiting)
        seats = Seats(times, held, len(held), num_free, self.seats)
        return seats.seconds_until_begun(len(self.waiting), tokens, ready_in_s)

    def _last_begun_s(self, *, knows_starts: bool) -> float:
        free: list[float] = []
        for worker in self.workers:
            ready_s = worker.ready_s
            if ready_s > self.now_s and not knows_starts:
                ready_s = max(self.now_s, worker.began_s + self.rate.start_s)
            empty = [max(self.now_s, ready_s)] * (self.seats - len(worker.runs))
            free += [*(run.end_s for run in worker.runs), *empty]
        free = free or [self.now_s + self.rate.start_s] * self.seats
        heapq.heapify(free)
        begun_s = self.now_s
        for row in self.waiting:
            begun_s = max(begun_s, free[0])
            heapq.heapreplace(free, begun_s + row.output_tokens / TOKENS_PER_S)
        return begun_s - self.now_s

    def values(self) -> list[float]:
        """Return the figures of the triggers: seconds of one worker, pages, whether jobs run."""
        held = sum(len(worker.runs) for worker in self.workers)
        return [SPEED * self._work / self.rate.work_per_s, 0.0, float(bool(held or self.waiting))]


def _rate(rows: Sequence[TraceRow], seats: int, start_s: float) -> DrainRate:
    """Return the rate of a full worker, as it is."""
    tokens = statistics.mean(row.output_tokens for row in rows)
    prompts = statistics.mean(row.input_tokens for row in rows)
    jobs_per_s = seats * TOKENS_PER_S / tokens
    work = tokens + PROMPT_SHARE * prompts
    return DrainRate((tokens + prompts) * jobs_per_s, work * jobs_per_s, work * seats, 1, start_s)


def simulated(rows: Sequence[TraceRow], seats: int, starts: Sequence[float], seed: int) -> _Pool:
    """Run the half hour to its end."""
    draw, autoscaler = random.Random(seed), Autoscaler(ScaledObject.read(MANIFEST))
    pool, coming = _Pool(seats, _rate(rows, seats, statistics.mean(starts))), deque(rows)
    polled_s = synced_s = float("-inf")
    while coming or pool.waiting or autoscaler.replicas:
        pool.now_s += TICK_S
        now_s = pool.now_s * SPEED
        while coming and coming[0].at_s <= now_s:
            pool.waiting.append(coming.popleft())
        pool.pull()
        if now_s >= 60 * pool.num_looks:
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


def _fitting(pool: _Pool) -> list[tuple[int, int]]:
    """Count for each teller the minutes within 20 %, and those within half a second alone."""
    counts = [(0, 0)] * len(TELLERS)
    for at_s, told in pool.told:
        last_s = max((begun for came, begun in pool.begun if came <= at_s), default=0.0)
        waited_s = max(0.0, last_s - at_s)
        for teller, seconds in enumerate(told):
            fit, near = counts[teller]
            off_s = abs(seconds - waited_s)
            fits = off_s <= MOST_OFF * waited_s
            counts[teller] = (fit + fits, near + (not fits and off_s <= LEAST_S))
    return counts


def main() -> None:
    """Print how many minutes with a queue each tells right, in the mean over draws."""
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
    print(f"minutes with a queue {statistics.mean(len(pool.told) for pool in pools):.1f}")
    for name, counts in zip(TELLERS, zip(*map(_fitting, pools), strict=True), strict=True):
        fit, near = (statistics.mean(each) for each in zip(*counts, strict=True))
        print(f"{name:16} {fit:.1f} within 20 %, {near:.1f} more within half a second")


if __name__ == "__main__":
    main()
