"""What readers notice when a worker is killed, of its own jobs and of the other worker's.

Two workers on one embedded server share eight jobs; one worker is killed in the middle of them.
Measured are the wait from SIGKILL to the next token of each job that changed hands, and how far
apart the tokens of the others come before, while those are computed again, and afterwards.

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
from itertools import pairwise
from typing import TYPE_CHECKING

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.client.pool_status import read_status
from tokenbus.producer.server.embedded import start_private

if TYPE_CHECKING:
    from tokenbus.producer.server.embedded import EmbeddedServer

POOL = "takeover"
NUM_JOBS = 8
# The kill comes when every job has this many tokens; prompt and log together stay under 200.
NUM_LOGGED = 24
# Enough for the others to stream on until the last job has been taken over.
NUM_TOKENS = 700
PROMPT = (
    "A customer writes: my parcel was promised for Tuesday, it is Friday and the tracking page has "
    "shown the same depot for three days. Answer kindly, explain what happens next, and ask for "
    "nothing that the order number already tells you. Order number {number}."
)
START_TIMEOUT_S = 300.0
# How long all stream undisturbed before the kill.
STREAM_S = 1.0


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

    def steps(self, start: float, end: float) -> list[float]:
        """Return the times between neighbouring arrivals, of which the later is in the window."""
        moments = [at for at, _ in self.arrivals]
        return [later - earlier for earlier, later in pairwise(moments) if start < later <= end]


@dataclass(slots=True)
class Measured:
    """Waits of the jobs that changed hands; times between tokens of those that did not, all in s.

    `during` is from a second before the first job comes back until the last one has.
    """

    waits: list[float] = field(default_factory=list)
    before: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)

    def add(self, jobs: list[Job], began_at: float, killed_at: float) -> None:
        """Take the jobs of one round."""
        gaps = [(job, job.gap_after(killed_at)) for job in jobs]
        waits = [gap for _, gap in gaps if gap is not None]
        if not waits:
            return
        self.waits += waits
        first, last = killed_at + min(waits) - 1, killed_at + max(waits)
        for job, gap in gaps:
            if gap is None:
                self.before += job.steps(began_at, killed_at)
                self.during += job.steps(first, last)
                self.after += job.steps(last, float("inf"))


def _start_worker(server: EmbeddedServer, args: argparse.Namespace) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "tokenbus.producer.commands.cli", "worker"]
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
    client: AsyncClient, server: EmbeddedServer, args: argparse.Namespace, measured: Measured
) -> None:
    """Kill a worker under its jobs once."""
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
            began_at = time.monotonic()
            await asyncio.sleep(STREAM_S)
            killed_at = time.monotonic()
            workers[0].kill()
        measured.add(jobs, began_at, killed_at)
    finally:
        for process in workers:
            process.kill()
            process.wait()


async def _measure(args: argparse.Namespace) -> Measured:
    server = await asyncio.to_thread(start_private)
    try:
        async with await AsyncClient.connect(server.url, pool=POOL) as client:
            measured = Measured()
            while len(measured.waits) < args.rounds * NUM_JOBS // 2:
                await _round(client, server, args, measured)
            return measured
    finally:
        await asyncio.to_thread(server.close)


def share_of(values: list[float], share: float) -> float:
    """Return the value that this share of all does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> int:
    """Measure and print; return 1 if the 95th percentile is past the lease and two seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", choices=("paged", "null"), default="paged")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--lease-ttl-s", type=float, default=5.0)
    args = parser.parse_args()
    measured = asyncio.run(_measure(args))
    waits = measured.waits
    p50, p95 = share_of(waits, 0.5), share_of(waits, 0.95)
    limit = args.lease_ttl_s + 2
    print(f"{len(waits)} jobs changed hands, lease {args.lease_ttl_s:g} s")
    print(f"SIGKILL to next token: p50 {p50:.2f} s, p95 {p95:.2f} s, worst {max(waits):.2f} s")
    for name in ("before", "during", "after"):
        steps: list[float] = getattr(measured, name)
        if steps:
            figures = [f"p{share:.0%} {share_of(steps, share) * 1e3:.1f}" for share in (0.5, 0.99)]
            worst = f"worst {max(steps) * 1e3:.1f} ms of {len(steps)}"
            print(f"tokens of the others, {name}: {', '.join(figures)}, {worst}".replace("%", ""))
    print(f"bar: p95 <= {limit:g} s: {'met' if p95 <= limit else 'missed'}")
    return 0 if p95 <= limit else 1


if __name__ == "__main__":
    sys.exit(main())
