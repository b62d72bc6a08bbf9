"""What metrics and traces cost: processor time of a worker per token, with and without them.

    python benchmarks/telemetry.py --rounds 5

Each round runs one worker with the null engine twice, in a process of its own each: once without a
port and without traces, once scraped every second while every job is traced. Both publish in the
worker's process, whose processor time is counted, with that of the client that reads beside it. The
order changes from round to round. `--baseline FOLDER` runs another checkout as a third, without
both: its build/typing is what Python imports.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

NUM_JOBS, NUM_TOKENS, BATCH = 64, 512, 64
WAYS = ("off", "on")


async def _follow(client: Any, job: Any) -> None:
    async for _ in client.stream(job):
        pass


async def _run(way: str) -> dict[str, float]:
    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.server.embedded import start_private
    from tokenbus.worker.settings import WorkerSettings
    from tokenbus.worker.supervisor import Worker

    told: dict[str, Any] = {}
    if way == "on":
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            told["metrics_port"] = sock.getsockname()[1]
        _trace()
    server = await asyncio.to_thread(start_private)
    settings = WorkerSettings.load(
        redis_url=server.url, engine="null", publishers=0, log_level="error", num_pages=20_000,
        max_num_seqs=BATCH, **told,
    )  # fmt: skip
    try:
        async with Worker(settings) as running, await AsyncClient.connect(server.url) as client:
            scraping = asyncio.create_task(_scrape(told["metrics_port"])) if told else None
            seconds = []
            for _ in range(3):
                began_at, cpu_at = time.perf_counter(), time.process_time()
                jobs = await client.submit_many([_request(way) for _ in range(NUM_JOBS)])
                await asyncio.gather(*(_follow(client, job) for job in jobs))
                while running.num_held:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                seconds.append((time.process_time() - cpu_at, time.perf_counter() - began_at))
            if scraping is not None:
                scraping.cancel()
    finally:
        server.close()
    # The first load warms up what comes lazily.
    cpu_s, wall_s = (sum(each) for each in zip(*seconds[1:], strict=True))
    num_tokens = (len(seconds) - 1) * NUM_JOBS * NUM_TOKENS
    return {"cpu_us": 1e6 * cpu_s / num_tokens, "tokens_per_s": num_tokens / wall_s}


def _request(way: str) -> dict[str, Any]:
    request: dict[str, Any] = {"prompt": "x", "max_tokens": NUM_TOKENS, "ignore_eos": True}
    if way == "on":
        request["traceparent"] = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
    return request


def _trace() -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from tokenbus.producer.telemetry.trace_setup import make_provider

    provider = make_provider("worker", "default")
    provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    trace.set_tracer_provider(provider)


async def _scrape(port: int) -> None:
    def read() -> None:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            reply.read()

    while True:
        await asyncio.to_thread(read)
        await asyncio.sleep(1.0)


def main() -> int:
    """Run the rounds and print medians, or run one way alone and print that as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--baseline", type=Path)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(asyncio.run(_run(args.way))))
        return 0
    ways = [*WAYS, *(["baseline"] if args.baseline else [])]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(args.rounds):
        for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
            env = dict(os.environ)
            if way == "baseline":
                env["PYTHONPATH"] = str(args.baseline / "build" / "typing")
            command = [sys.executable, "-P", __file__, "--way", "on" if way == "on" else "off"]
            out = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
            found[way].append(json.loads(out.stdout.splitlines()[-1]))
    for way, rounds in found.items():
        cpu_us = statistics.median(each["cpu_us"] for each in rounds)
        rate = statistics.median(each["tokens_per_s"] for each in rounds)
        least = min(each["cpu_us"] for each in rounds)
        print(f"{way:9} {cpu_us:6.2f} us of CPU a token, least {least:.2f}, {rate:,.0f} tokens/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
