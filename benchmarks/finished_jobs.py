"""What finished jobs cost the server: bytes a job, time of its completion, and an hour of them.

First `--jobs` jobs run through the scripts, 64 tokens in and 20 out; what they leave is measured.
Then an hour at `--rate` jobs/s goes by, scaled: its results live for `--hour-s` seconds in place of
an hour, and the pool's bound in bytes is as much smaller. The server has memory for that bound and
the jobs that are under way, and refuses what exceeds it (`noeviction`).

    python -P benchmarks/finished_jobs.py --rate 1000 --hour-s 60
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.usage import Usage
from tokenbus.producer.client.reading.lookup import Lookup
from tokenbus.producer.contract.events import Event, Finish
from tokenbus.producer.contract.new_job import NewJob, draw_id
from tokenbus.producer.contract.result import build_result
from tokenbus.producer.scripts import Append, Bounds, Budget, End, Scripts, Takeover
from tokenbus.producer.scripts.completing import Completed, Retention
from tokenbus.producer.scripts.completion import JobCompletion
from tokenbus.producer.scripts.replies import Refused
from tokenbus.producer.server.connection import make_redis
from tokenbus.producer.server.embedded import start_private

if TYPE_CHECKING:
    from collections.abc import Sequence

HOUR_S = 3600
BATCH = 64
NUM_IN, NUM_OUT, VOCAB = 64, 20, 50_000
REQUEST = '{"v":2,"token_ids":"' + "x" * 4 * NUM_IN + f'","max_tokens":{NUM_OUT}}}'
WIDE = Bounds(10**12, 10**12)
BUDGET = Budget(pages=10**6, page_size=16, total_pages=10**6, max_jobs=BATCH)
FINISH = Finish("length", Usage(NUM_IN, 0, NUM_OUT), None, ("length",))
# What scripts, connections and jobs under way may take beside what is over.
LIVE_BYTES = 4 * 2**20
POOL_BYTES = 256 * 2**20


@dataclass
class Bus:
    """A pool with one worker that answers at once."""

    scripts: Scripts
    completion: JobCompletion
    chance: random.Random
    num_refused: int = 0
    complete_us: float = 0.0

    async def memory(self) -> int:
        """Return the bytes that the server uses."""
        told: dict[str, Any] = await self.scripts.redis.info("memory")
        return int(told["used_memory"])

    async def _script_us(self) -> float:
        stats: dict[str, Any] = await self.scripts.redis.info("commandstats")
        return float(sum(stats.get(f"cmdstat_{name}", {"usec": 0})["usec"] for name in RUNS))

    async def run(self, count: int) -> list[str]:
        """Let jobs come, run and be completed; return those that were accepted."""
        log = self.scripts.log
        replies = await self.scripts.queue.submit_many([_job() for _ in range(count)], WIDE)
        self.num_refused += sum(isinstance(reply, Refused) for reply in replies)
        jobs = (await self.scripts.lease.pull("w", 1, BUDGET)).jobs
        await log.takeover([Takeover(job.job_id, 1, "w") for job in jobs])
        answers = [self._answer(job.job_id) for job in jobs]
        await log.append([append for append, _ in answers])
        await log.end([end for _, end in answers])
        done = [Completed.of(job.job_id, FINISH.dump(), FINISH) for job in jobs]
        before = await self._script_us()
        whys = await self.completion.complete_many(done)
        self.complete_us += await self._script_us() - before
        if any(whys):
            raise RuntimeError(f"jobs were not completed: {whys}")
        return [job.job_id for job in jobs]

    def _answer(self, job_id: str) -> tuple[Append, End]:
        ids = tuple(self.chance.randrange(VOCAB) for _ in range(NUM_OUT))
        ends = tuple(range(4, 4 * NUM_OUT + 1, 4))
        text = "word" * NUM_OUT
        event = Event(job_id, 1, 0, 1, NUM_OUT, text, ids, ends)
        result = build_result(job_id, 1, [event], FINISH)
        append = Append(job_id, 1, 0, 1, NUM_OUT, text, ids, ends)
        return append, End(job_id, 1, NUM_OUT, FINISH.dump(), result.dump())


# The commands that run scripts.
RUNS = ("evalsha", "eval")


def _job() -> NewJob:
    return NewJob(draw_id(), "default", 1, NUM_IN, NUM_OUT, 1, REQUEST, "d" * 32)


async def _measure(bus: Bus, num_jobs: int) -> None:
    """Print what a finished job leaves and what its completion costs."""
    await bus.run(BATCH)
    bus.complete_us = 0.0
    before = await bus.memory()
    for first in range(0, num_jobs, BATCH):
        await bus.run(min(BATCH, num_jobs - first))
    per_job = (await bus.memory() - before) / num_jobs
    print(f"a finished job of {NUM_IN} in, {NUM_OUT} out: {per_job:.0f} bytes")
    print(f"its completion: {bus.complete_us / num_jobs:.1f} us of the server")


async def _pass_an_hour(bus: Bus, rate: int, hour_s: float, bound: int) -> None:
    """Let jobs come at a rate for a little over an hour, and print what the server had to hold."""
    # Scripts and what they leave for good are not what is over.
    await bus.run(BATCH)
    base = most = await bus.memory()
    await bus.scripts.redis.config_set("maxmemory", base + bound + LIVE_BYTES)
    started_at = time.monotonic()
    names: list[str] = []
    while (passed_s := time.monotonic() - started_at) < 1.1 * hour_s:
        if len(names) < rate * passed_s:
            names += await bus.run(BATCH)
            most = max(most, await bus.memory())
        else:
            await asyncio.sleep(0.005)
    print(f"{len(names) / passed_s:.0f} jobs/s for {passed_s:.0f} s, which are {1.1:.1f} hours")
    print(f"at most {(most - base) / 2**20:.2f} MiB, bound {bound / 2**20:.2f} MiB")
    print(f"refused: {bus.num_refused} of {len(names)}")
    print(await _told(bus.scripts, names))


async def _told(scripts: Scripts, names: Sequence[str]) -> str:
    """Say what becomes of those who ask for jobs of long ago."""
    kept = dropped = forgotten = 0
    for name in names[:: max(1, len(names) // 500)]:
        known = await Lookup(scripts).look(name, 0)
        kept += known.result is not None and known.record is not None
        dropped += known.record is not None and known.record.is_dropped
        forgotten += known.record is None
    return f"of those asked for: {kept} kept, {dropped} told as dropped, {forgotten} forgotten"


async def _open(path: str, keep: Retention) -> Bus:
    scripts = Scripts(make_redis(f"unix://{path}"), "past")
    await scripts.lease.reconcile("w", 1, 10**9, BUDGET.total_pages, BUDGET.page_size)
    return Bus(scripts, JobCompletion(scripts, keep), random.Random(1))


async def _run_jobs(path: str, args: argparse.Namespace) -> None:
    bus = await _open(path, Retention(pool_bytes=0, tenant_bytes=0))
    await _measure(bus, args.jobs)
    await bus.scripts.redis.aclose()


async def _run_hour(path: str, args: argparse.Namespace) -> None:
    scale = args.hour_s / HOUR_S
    bound = int(POOL_BYTES * scale)
    log_ms, result_ms = int(120_000 * scale), int(HOUR_S * 1000 * scale)
    bus = await _open(path, Retention(log_ms, result_ms, pool_bytes=bound, tenant_bytes=0))
    await _pass_an_hour(bus, args.rate, args.hour_s, bound)
    await bus.scripts.redis.aclose()


def main() -> int:
    """Run the benchmark, each part on a server of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--hour-s", type=float, default=60.0)
    args = parser.parse_args()
    for part in (_run_jobs, _run_hour):
        server = start_private()
        try:
            asyncio.run(part(str(server.socket_path), args))
        finally:
            server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
