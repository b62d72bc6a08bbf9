"""What metrics and traces cost: processor time of a worker per token, of a scrape, of a traced job.

    python benchmarks/telemetry.py --rounds 5 --baseline FOLDER

Each round runs one worker with the null engine in a process of its own, and beside it the same of
another checkout, the baseline, whose build/typing is what Python imports; the order changes from
round to round. It publishes in the worker's process, whose processor time is counted, with that of
the client that reads beside it. A scrape and the spans of a job are taken by themselves: what they
cost a token follows from how often Prometheus asks, and from how long answers are.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NUM_JOBS, NUM_TOKENS, BATCH = 64, 512, 64
SCRAPES, JOBS = 50, 500


async def _follow(client: Any, job: Any) -> None:
    async for _ in client.stream(job):
        pass


async def _run() -> dict[str, float]:
    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.server.embedded import start_private
    from tokenbus.worker.settings import WorkerSettings
    from tokenbus.worker.supervisor import Worker

    server = await asyncio.to_thread(start_private)
    settings = WorkerSettings.load(
        redis_url=server.url, engine="null", publishers=0, log_level="error", num_pages=20_000,
        max_num_seqs=BATCH,
    )  # fmt: skip
    request = {"prompt": "x", "max_tokens": NUM_TOKENS, "ignore_eos": True}
    try:
        async with Worker(settings) as running, await AsyncClient.connect(server.url) as client:
            seconds = []
            for _ in range(3):
                began_at, cpu_at = time.perf_counter(), time.process_time()
                jobs = await client.submit_many([request for _ in range(NUM_JOBS)])
                await asyncio.gather(*(_follow(client, job) for job in jobs))
                while running.num_held:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                seconds.append((time.process_time() - cpu_at, time.perf_counter() - began_at))
    finally:
        server.close()
    # The first load warms up what comes lazily.
    cpu_s, wall_s = (sum(each) for each in zip(*seconds[1:], strict=True))
    num_tokens = (len(seconds) - 1) * NUM_JOBS * NUM_TOKENS
    return {"cpu_us": 1e6 * cpu_s / num_tokens, "tokens_per_s": num_tokens / wall_s}


def _scrape_ms() -> float:
    """Return the processor time of a scrape with twenty tenants at each priority."""
    from prometheus_client import CollectorRegistry, generate_latest
    from workers.parts import a_member, an_engine

    from tokenbus.engine.types import EngineStats
    from tokenbus.worker.life import WorkerLife
    from tokenbus.worker.settings import WorkerSettings
    from tokenbus.worker.telemetry.exporter import Exporter

    member, (engine, _) = a_member(), an_engine()
    member.session.num_losses = 0
    link: Any = engine.link
    link.stats = EngineStats(100, 50, 10, 3, 2)
    for priority in range(3):
        for tenant in range(20):
            member.metrics.left(priority, f"t{tenant}", "finished")
            member.metrics.spent(priority, f"t{tenant}", prompt=1, cached=1, generated=1)
    exporter = Exporter(WorkerSettings.load(engine="null"), WorkerLife(lambda *_: None))
    exporter.attach(member, engine, model="null", total_pages=99)
    registry = CollectorRegistry()
    registry.register(exporter)
    cpu_at = time.process_time()
    for _ in range(SCRAPES):
        generate_latest(registry)
    return 1e3 * (time.process_time() - cpu_at) / SCRAPES


def _job_us() -> float:
    """Return the processor time of the spans of a job, with OpenTelemetry's own SDK."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from tokenbus.producer.telemetry.trace_setup import make_provider
    from tokenbus.producer.telemetry.tracing import EndedSpan, TraceContext, Tracer

    provider = make_provider("worker", "default")
    provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    trace.set_tracer_provider(provider)
    tracer = Tracer()
    cpu_at = time.process_time()
    for number in range(JOBS):
        parent = TraceContext(number + 1, number + 1)
        names = ("queue", "prefill", "decode", "publish")
        told = {f"tokenbus.{n}": n for n in range(12)}
        root = EndedSpan(name="job", began_at=1.0, ended_at=2.0, attributes=told, context=parent)
        parts = (EndedSpan(name=n, began_at=1.0, ended_at=2.0, attributes={}) for n in names)
        tracer.tell(parent, root, *parts)
    return 1e6 * (time.process_time() - cpu_at) / JOBS


def main() -> int:
    """Run the rounds and print medians, or run one alone and print that as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--baseline", type=Path)
    parser.add_argument("--one", action="store_true", help="run one round here (default: several)")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(asyncio.run(_run())))
        return 0
    ways = ["here", *(["baseline"] if args.baseline else [])]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(args.rounds):
        for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
            env = dict(os.environ)
            if way == "baseline":
                env["PYTHONPATH"] = str(args.baseline / "build" / "typing")
            command = [sys.executable, "-P", __file__, "--one"]
            out = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
            found[way].append(json.loads(out.stdout.splitlines()[-1]))
    for way, rounds in found.items():
        cpu_us = [each["cpu_us"] for each in rounds]
        rate = statistics.median(each["tokens_per_s"] for each in rounds)
        print(
            f"{way:9} {statistics.median(cpu_us):6.2f} us of CPU a token,"
            f" {min(cpu_us):.2f} to {max(cpu_us):.2f}, {rate:,.0f} tokens/s"
        )
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
    print(f"a scrape  {_scrape_ms():6.2f} ms of CPU")
    print(f"a traced job {_job_us():6.0f} us of CPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())
