"""What a token costs the process that reads it: CPU time of one reader with many open streams.

Another process appends one token to each of the streams, round after round; the reader follows all
of them to the end over its one connection and counts its own CPU time.

    python -P benchmarks/reader.py --streams 256 --tokens 200 --rate 10000
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from tokenbus.engine.chat.usage import Usage
from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.client.blocking import Client
from tokenbus.producer.contract.events import Finish
from tokenbus.producer.contract.result import build_result
from tokenbus.producer.scripts import Append, Budget, End, Takeover
from tokenbus.producer.server.embedded import start_private

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts

POOL = "reader"
WORKER = "writer"
BATCH = 64
TIMEOUT_S = 120.0


async def write(url: str, num_tokens: int, rate: float) -> None:
    """Pull every job, and append tokens to all of them at `rate` tokens per second in all."""
    async with await AsyncClient.connect(url, POOL) as client:
        scripts = client.scripts
        await scripts.lease.reconcile(WORKER, 1, 600_000, 10**6, 16)
        jobs: list[str] = []
        while pulled := (await scripts.lease.pull(WORKER, 1, Budget(10**6, 16, 10**6, 64))).jobs:
            jobs += [job.job_id for job in pulled]
        for first in range(0, len(jobs), BATCH):
            await scripts.log.takeover(
                [Takeover(j, 1, WORKER) for j in jobs[first : first + BATCH]]
            )
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        started_at = time.monotonic()
        for index in range(1, num_tokens + 1):
            for first in range(0, len(jobs), BATCH):
                part = jobs[first : first + BATCH]
                items = [Append(j, 1, 0, index, index, " shoe", [index], [5 * index]) for j in part]
                await scripts.log.append(items)
            due = started_at + index * len(jobs) / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await _end(scripts, jobs, num_tokens)


async def _end(scripts: Scripts, jobs: list[str], last: int) -> None:
    finish = Finish("length", Usage(1, 0, last))
    for job in jobs:
        result = build_result(job, 1, [], finish)
        await scripts.log.end([End(job, 1, last, finish.dump(), result.dump())])


def start_writer(url: str, args: argparse.Namespace) -> subprocess.Popen[str]:
    """Run the writer in a process of its own until it holds all jobs."""
    command = [sys.executable, "-P", __file__, "--write", url]
    command += ["--tokens", str(args.tokens), "--rate", str(args.rate)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if writer.stdout is None or writer.stdout.readline() != "ready\n":
        raise RuntimeError("the writer did not start")
    return writer


def let_go(writer: subprocess.Popen[str]) -> None:
    """Let the writer begin."""
    if writer.stdin is not None:
        writer.stdin.write("\n")
        writer.stdin.flush()


async def read_async(url: str, args: argparse.Namespace) -> tuple[float, int, int]:
    """Read all streams in one event loop; return CPU seconds, tokens and events."""
    async with await AsyncClient.connect(url, POOL) as client:
        jobs = await client.submit_many([{"prompt": "x"} for _ in range(args.streams)])
        writer = await asyncio.to_thread(start_writer, url, args)
        counts = [0, 0]

        async def follow(job_id: str) -> None:
            async for event in client.stream(job_id):
                counts[0] += len(event.ids)
                counts[1] += 1

        async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as readers:
            for job in jobs:
                readers.create_task(follow(job.job_id))  # type: ignore[union-attr]
            await asyncio.sleep(1)  # every stream is subscribed and has replayed nothing
            before = time.process_time()
            let_go(writer)
        spent = time.process_time() - before
        writer.wait()
        return spent, counts[0], counts[1]


def read_blocking(url: str, args: argparse.Namespace) -> tuple[float, int, int]:
    """Read all streams in a thread each; return CPU seconds, tokens and events."""
    counts = [0, 0]
    with Client.connect(url, POOL) as client:
        jobs = client.submit_many([{"prompt": "x"} for _ in range(args.streams)])
        writer = start_writer(url, args)

        def follow(job_id: str) -> None:
            for event in client.stream(job_id):
                counts[0] += len(event.ids)
                counts[1] += 1

        threads = [threading.Thread(target=follow, args=(j.job_id,)) for j in jobs]  # type: ignore[union-attr]
        for thread in threads:
            thread.start()
        time.sleep(1)
        before = time.process_time()
        let_go(writer)
        for thread in threads:
            thread.join()
        spent = time.process_time() - before
        writer.wait()
    return spent, counts[0], counts[1]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rate", type=float, default=10_000, help="tokens per second in all")
    parser.add_argument("--write", metavar="URL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        asyncio.run(write(args.write, args.tokens, args.rate))
        return 0
    server = start_private()
    try:
        for name, (spent, num_tokens, num_events) in {
            "async": asyncio.run(read_async(server.url, args)),
            "blocking, a thread per stream": read_blocking(server.url, args),
        }.items():
            print(
                f"{name}: {spent / num_tokens * 1e6:.1f} us of CPU per token, {num_tokens} tokens",
                end="",
            )
            print(f" in {num_events} events")
    finally:
        server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
