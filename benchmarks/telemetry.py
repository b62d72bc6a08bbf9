"""What metrics and traces cost: processor time of a worker a token, of a scrape, of a traced job.

    python benchmarks/telemetry.py --rounds 15

One worker with the null engine runs the same load again and again: with nothing counted or traced,
with metrics, and with metrics and a trace for every job, the order turning from round to round. It
publishes in its own process, whose processor time is counted; results are taken whole by a client
beside it. Rounds are compared one by one, so that what a busy machine does to all of them is in no
difference; and in a fourth load of each round what counts and traces is timed where it happens,
which a busy machine changes least. What a moment of each token costs, of which the gaps in
`job.finished` are made, is counted by itself, as is a scrape, which comes as often as Prometheus
asks. Spans are made and sent to a collector, which forgets them, by a process beside the worker:
what a traced job costs there is told last.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
import timeit
from array import array
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tokenbus.worker.tracing.span_link import GATHER_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

NUM_JOBS, NUM_TOKENS, BATCH = 64, 512, 64
SCRAPES = 50
PLACES = ("in metrics", "in traces")
WAYS = ("nothing", "metrics", "metrics and traces")
_COLLECTOR = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Collector(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = HTTPServer(("127.0.0.1", 0), Collector)
print(server.server_port, flush=True)
server.serve_forever()
"""
# The process that sends spans does so when it has many, or every five seconds.
_SENT_S = 6.0
_TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def _places() -> list[tuple[type, str]]:
    """Return all that counts or tells while jobs run, as class and name; traces are the last."""
    from tokenbus.producer.telemetry.histogram import Histogram
    from tokenbus.worker.held.job_traces import JobTraces
    from tokenbus.worker.metrics import Metrics
    from tokenbus.worker.pool.recent_times import RecentTimes
    from tokenbus.worker.tracing.span_link import SpanLink

    return [
        *((Histogram, name) for name in ("add", "add_sorted", "add_up_to_bounds", "merge")),
        *((Metrics, name) for name in ("stepped", "streamed", "left")),
        (RecentTimes, "look"),
        (JobTraces, "left"),
        (SpanLink, "_send"),
    ]


@contextmanager
def _replaced(make: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Let each of the places do what is made of it."""
    real = [(owner, name, getattr(owner, name)) for owner, name in _places()]
    for owner, name, does in real:
        setattr(owner, name, make(owner.__name__, does))
    try:
        yield
    finally:
        for owner, name, does in real:
            setattr(owner, name, does)


def _nothing(_: str, __: object) -> Callable[..., Any]:
    return lambda *_, **__: {}


class _Stopwatch:
    """Times the calls of the places, outer ones alone, without what timing them takes.

    That is told by two looks at the clock in a row before each, where it happens: a first look
    there takes longer than one of many. The clock is the machine's, which costs least to read.
    """

    def __init__(self) -> None:
        self._ns: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._is_running = False

    def us_a_token(self, *, of_traces: bool) -> float:
        """Return what traces, or all else, cost a token of one load.

        Each call counts as the median of its kind: one in which the machine did something else says
        nothing of what it costs.
        """
        spent = sum(
            len(calls) * max(0.0, statistics.median(calls))
            for (owner, _), calls in self._ns.items()
            if (owner in ("JobTraces", "SpanLink")) is of_traces
        )
        return spent / 1e3 / NUM_JOBS / NUM_TOKENS

    def made(self, owner: str, does: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and is timed."""

        def timed(*args: Any, **words: Any) -> Any:
            if self._is_running:
                return does(*args, **words)
            self._is_running, look = True, time.perf_counter_ns
            idle_from, began_at = look(), look()
            try:
                return does(*args, **words)
            finally:
                spent = look() - began_at
                self._ns[owner, does.__name__].append(spent - (began_at - idle_from))
                self._is_running = False

        return timed


async def _load(worker: Any, client: Any, way: str) -> float:
    """Run one load until all jobs have left; return the processor time, in us a token."""
    request: dict[str, Any] = {"prompt": "x", "max_tokens": NUM_TOKENS, "ignore_eos": True}
    if way == "metrics and traces":
        request["traceparent"] = _TRACEPARENT
    cpu_at = time.process_time()
    jobs = await client.submit_many([request for _ in range(NUM_JOBS)])
    await client.results(jobs)
    while worker.num_held:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.001)
    # Traced jobs go to the process that makes their spans.
    await asyncio.sleep(2 * GATHER_S)
    return 1e6 * (time.process_time() - cpu_at) / (NUM_JOBS * NUM_TOKENS)


async def _rounds(
    number: int, ways: Sequence[str], endpoint: str | None
) -> tuple[dict[str, list[float]], float]:
    """Return the processor time a token of each way, round by round.

    And what the span process took, in us a traced job.
    """
    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.server.embedded import start_private
    from tokenbus.worker.settings import WorkerSettings
    from tokenbus.worker.supervisor import Worker

    server = await asyncio.to_thread(start_private)
    settings = WorkerSettings.load(
        redis_url=server.url, engine="null", publishers=0, log_level="error", num_pages=20_000,
        max_num_seqs=BATCH, trace_endpoint=endpoint,
    )  # fmt: skip
    found: dict[str, list[float]] = {way: [] for way in ways}
    try:
        async with Worker(settings) as worker, await AsyncClient.connect(server.url) as client:
            # What comes lazily comes first.
            await _load(worker, client, ways[-1])
            sender = await _sender(worker)
            began_s = _cpu_s(sender)
            for at in range(number):
                turn = at % len(ways)
                for way in (*ways[turn:], *ways[:turn]):
                    with _replaced(_nothing) if way == "nothing" else nullcontext():
                        found[way].append(await _load(worker, client, way))
                watch = _Stopwatch()
                with _replaced(watch.made):
                    await _load(worker, client, ways[-1])
                for place in PLACES:
                    spent = watch.us_a_token(of_traces=place == "in traces")
                    found.setdefault(place, []).append(spent)
            if sender is not None:
                await asyncio.sleep(_SENT_S)
            # The loads of the last way, and those that are timed where it happens.
            job_us = 1e6 * (_cpu_s(sender) - began_s) / (2 * number * NUM_JOBS)
    finally:
        server.close()
    return found, job_us


async def _sender(worker: Any) -> psutil.Process | None:
    """Return the process that sends spans, once it has sent those of a first load."""
    link = worker._span_link
    if link is None:
        return None
    await asyncio.sleep(_SENT_S)
    return psutil.Process(link.pid)


def _cpu_s(process: psutil.Process | None) -> float:
    return 0.0 if process is None else sum(process.cpu_times()[:2])


def _moment_us() -> float:
    """Return what it costs to note the gap before a token, in us of processor time."""
    gaps = array("f")
    timer = timeit.Timer(lambda: gaps.append(1.5 - 0.5), timer=time.process_time)
    return min(timer.repeat(5, 100_000)) / 0.1


@contextmanager
def _collector() -> Iterator[str]:
    """Run a collector beside us that forgets what it is told; the value is its endpoint."""
    with subprocess.Popen(
        [sys.executable, "-c", _COLLECTOR], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1/traces"
        finally:
            process.kill()


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
            tokens = {"prompt": 1, "cached": 1, "generated": 1}
            member.metrics.left(priority, f"t{tenant}", "finished", **tokens)
    exporter = Exporter(WorkerSettings.load(engine="null"), WorkerLife(lambda *_: None))
    exporter.attach(member, engine, model="null", total_pages=99)
    registry = CollectorRegistry()
    registry.register(exporter)
    cpu_at = time.process_time()
    for _ in range(SCRAPES):
        generate_latest(registry)
    return 1e3 * (time.process_time() - cpu_at) / SCRAPES


def _quartiles(values: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:6.3f} us ({low:.3f} to {high:.3f})"


def main() -> int:
    """Run the rounds and print medians, with the quartiles on both sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--no-traces", action="store_true", help="leave traces out: OpenTelemetry's SDK is not here"
    )
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
    ways = WAYS[:2] if args.no_traces else WAYS
    with nullcontext(None) if args.no_traces else _collector() as endpoint:
        found, job_us = asyncio.run(_rounds(args.rounds, ways, endpoint))
    base = found["nothing"]
    places = {place: found.pop(place) for place in PLACES}
    places["both"] = [sum(each) for each in zip(*places.values(), strict=True)]
    for place, values in places.items():
        share = statistics.median(values) / statistics.median(base)
        print(f"{place:20} {_quartiles(values)} a token, {share:.2%} of all")
    for way, values in found.items():
        more = [value - other for value, other in zip(values, base, strict=True)]
        share = statistics.median(more) / statistics.median(base)
        print(f"{way:20} {_quartiles(values)} a token; more {_quartiles(more)}, {share:+.1%}")
    print(f"a token's moment     {_moment_us():6.2f} us of CPU")
    print(f"a scrape             {_scrape_ms():6.2f} ms of CPU")
    if not args.no_traces:
        print(f"a traced job         {job_us:6.0f} us of CPU in the process that sends its spans")
    return 0


if __name__ == "__main__":
    sys.exit(main())
