"""What a long queue costs the server: a million waiting jobs of a thousand tenants.

Prints the server's own time per submit and per pulled job, the memory per waiting job, and how long
the first pull takes once the queue is full.

    python -P benchmarks/queue_scale.py --jobs 1000000 --tenants 1000
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from typing import TYPE_CHECKING, Any

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.contract.new_job import NewJob
from tokenbus.producer.scripts import Bounds, Budget
from tokenbus.producer.server.embedded import start_private

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts

POOL = "scale"
BATCH = 256
WIDE = Bounds(10**12, 10**12)
PAGE_SIZE = 64
# 256 jobs of 384 tokens: what a worker with room for a full batch asks for.
BUDGET = Budget(pages=256 * 6, page_size=PAGE_SIZE, total_pages=10**6, max_jobs=32)
NUM_PULLS = 200
# The commands that run scripts.
RUNS = ("evalsha", "eval")
REQUEST = '{"v":1,"prompt":"' + "x" * 512 + '","max_tokens":256}'


def _jobs(first: int, count: int, num_tenants: int, rng: random.Random) -> list[NewJob]:
    return [
        NewJob(
            job_id=f"s0-{first + number:012d}",
            tenant=f"tenant-{rng.randrange(num_tenants)}",
            priority=1,
            prompt_tokens=128,
            output_tokens=256,
            n=1,
            request=REQUEST,
            digest="d",
        )
        for number in range(count)
    ]


async def _script_seconds(scripts: Scripts) -> float:
    """Return the seconds that the server has spent on scripts so far."""
    stats: dict[str, Any] = await scripts.redis.info("commandstats")
    spent_us: int = sum(stats.get(f"cmdstat_{name}", {"usec": 0})["usec"] for name in RUNS)
    return spent_us / 1e6


async def _fill(scripts: Scripts, args: argparse.Namespace) -> None:
    """Queue all jobs and print what the last tenth of them cost the server."""
    rng = random.Random(1)
    before = int((await scripts.redis.info("memory"))["used_memory"])
    mark = 0.0
    tail_at = args.jobs - max(args.jobs // 10, BATCH)
    tail = 0
    for first in range(0, args.jobs, BATCH):
        if first >= tail_at and tail == 0:
            mark = await _script_seconds(scripts)
            tail = args.jobs - first
        count = min(BATCH, args.jobs - first)
        await scripts.queue.submit_many(_jobs(first, count, args.tenants, rng), WIDE)
    spent = await _script_seconds(scripts)
    after = int((await scripts.redis.info("memory"))["used_memory"])
    print(f"submit, queue at {args.jobs}: {(spent - mark) / tail * 1e6:.1f} us of the server each")
    print(f"memory: {(after - before) / args.jobs:.0f} bytes a waiting job")
    print(f"        ({len(REQUEST)} of them its request)")


async def _drain(scripts: Scripts) -> None:
    """Pull as a new worker does and print what it costs."""
    worker = "bench"
    await scripts.lease.reconcile(worker, 1, 600_000, BUDGET.total_pages, PAGE_SIZE)
    started_at = time.perf_counter()
    first = await scripts.lease.pull(worker, 1, BUDGET)
    print(f"first pull of a new worker: {(time.perf_counter() - started_at) * 1e3:.2f} ms")
    print(f"                            {len(first.jobs)} jobs")
    mark = await _script_seconds(scripts)
    num_jobs = 0
    for _ in range(NUM_PULLS):
        num_jobs += len((await scripts.lease.pull(worker, 1, BUDGET)).jobs)
    spent = await _script_seconds(scripts)
    print(f"pull: {(spent - mark) / NUM_PULLS * 1e6:.0f} us a call")
    print(f"      {(spent - mark) / max(num_jobs, 1) * 1e6:.1f} us of the server a job")


async def _measure(args: argparse.Namespace) -> None:
    server = await asyncio.to_thread(start_private)
    try:
        async with await AsyncClient.connect(server.url, pool=POOL) as client:
            await _fill(client.scripts, args)
            await _drain(client.scripts)
    finally:
        await asyncio.to_thread(server.close)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--tenants", type=int, default=1000)
    asyncio.run(_measure(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
