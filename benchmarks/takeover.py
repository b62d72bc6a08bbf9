"""How long a reader waits when a worker is killed: SIGKILL to the next token of each of its jobs.

Two workers on one embedded server share eight jobs; one worker is killed in the middle of them.

    python -P benchmarks/takeover.py --rounds 5 --model smollm2-135m
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenbus.producer.client import AsyncClient
from tokenbus.producer.embedded import start_private
from tokenbus.producer.status import read_status

if TYPE_CHECKING:
    from tokenbus.producer.embedded import EmbeddedServer

POOL = "takeover"
NUM_JOBS = 8
# The kill comes when every job has this many tokens; prompt and log together stay under 200.
NUM_LOGGED = 24
NUM_TOKENS = 96
PROMPT = (
    "A customer writes: my parcel was promised for Tuesday, it is Friday and the tracking page has "
    "shown the same depot for three days. Answer kindly, explain what happens next, and ask for "
    "nothing that the order number already tells you. Order number {number}."
)
START_TIMEOUT_S = 300.0


@dataclass(slots=True)
class Job:
    """What the reader of one job saw; times on the monotonic clock in seconds."""

    job_id: str
    num_tokens: int = 0
    epoch: int = 0
    arrivals: list[tuple[float, int]] = field(default_factory=list)

    def gap_after(self, moment: float) -> float | None:
        """Return the wait for the first token of another owner after `moment`, if there was one."""
        before = {epoch for at, epoch in self.arrivals if at <= moment}
        later = [at for at, epoch in self.arrivals if at > moment and epoch not in before]
        return later[0] - moment if later else None


def _start_worker(server: EmbeddedServer, args: argparse.Namespace) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "tokenbus.producer.cli", "worker"]
    options = ["--redis", server.url, "--pool", POOL, "--log-level", "error"]
    options += ["--lease-ttl-s", str(args.lease_ttl_s), "--threads", "1"]
    options += ["--engine", args.engine, "--model", args.model]
    environment = {"TOKENBUS_NULL_TOKENS_PER_S": "20", "TOKENBUS_MAX_PULL_JOBS": "1"}
    return subprocess.Popen([*command, *options], env=os.environ | environment)


async def _read(client: AsyncClient, job: Job, progress: asyncio.Event) -> None:
    async for event in client.stream(job.job_id):
        if event.ids:
            job.num_tokens = event.to
            job.arrivals.append((time.monotonic(), event.epoch))
            progress.set()


async def _until_midway(jobs: list[Job], progress: asyncio.Event) -> None:
    """Wait until every job is in the middle of its answer."""
    async with asyncio.timeout(START_TIMEOUT_S):
        while min(job.num_tokens for job in jobs) < NUM_LOGGED:
            progress.clear()
            await progress.wait()


async def _until_both_live(client: AsyncClient, lease_ttl_s: float) -> None:
    """Wait until both workers pull, and as long again as a new worker leaves the dead alone."""
    keys = client.scripts.keys
    async with asyncio.timeout(START_TIMEOUT_S):
        while len((await read_status(client.scripts.redis, keys)).workers) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await asyncio.sleep(2 * lease_ttl_s + 1)


async def _round(
    client: AsyncClient, server: EmbeddedServer, args: argparse.Namespace
) -> list[float]:
    """Kill a worker under its jobs once; return the waits of those that changed hands."""
    workers = [_start_worker(server, args) for _ in range(2)]
    try:
        await _until_both_live(client, args.lease_ttl_s)
        jobs: list[Job] = []
        progress = asyncio.Event()
        async with asyncio.TaskGroup() as readers:
            for number in range(NUM_JOBS):
                prompt = PROMPT.format(number=number)
                job = await client.submit(prompt, max_tokens=NUM_TOKENS, ignore_eos=True)
                jobs.append(Job(job.job_id))
                readers.create_task(_read(client, jobs[-1], progress))
            await _until_midway(jobs, progress)
            killed_at = time.monotonic()
            workers[0].kill()
        return [gap for job in jobs if (gap := job.gap_after(killed_at)) is not None]
    finally:
        for process in workers:
            process.kill()
            process.wait()


async def _measure(args: argparse.Namespace) -> list[float]:
    server = await asyncio.to_thread(start_private)
    try:
        async with await AsyncClient.connect(server.url, pool=POOL) as client:
            waits: list[float] = []
            while len(waits) < args.rounds * NUM_JOBS // 2:
                waits += await _round(client, server, args)
            return sorted(waits)
    finally:
        await asyncio.to_thread(server.close)


def main() -> int:
    """Measure and print; return 1 if the 95th percentile is past the lease and two seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", choices=("paged", "null"), default="paged")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--lease-ttl-s", type=float, default=5.0)
    args = parser.parse_args()
    waits = asyncio.run(_measure(args))
    p50, p95 = (waits[min(len(waits) - 1, int(share * len(waits)))] for share in (0.5, 0.95))
    limit = args.lease_ttl_s + 2
    print(f"{len(waits)} jobs changed hands, lease {args.lease_ttl_s:g} s")
    print(f"SIGKILL to next token: p50 {p50:.2f} s, p95 {p95:.2f} s, worst {waits[-1]:.2f} s")
    print(f"bar: p95 <= {limit:g} s: {'met' if p95 <= limit else 'missed'}")
    return 0 if p95 <= limit else 1


if __name__ == "__main__":
    sys.exit(main())
