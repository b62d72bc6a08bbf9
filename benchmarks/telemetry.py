"""What metrics and traces cost: processor time of a worker a token, of a scrape, of a traced job.

    python benchmarks/telemetry.py --rounds 15

One worker with the null engine runs the same load again and again: with nothing counted or traced,
with metrics, and with metrics and a trace for every job, the order turning from round to round. It
publishes in its own process, whose processor time is counted; results are taken whole by a client
in a process beside it. Rounds are compared one by one, so that what a busy machine does to all of
them is in no difference; and in another load of each round what counts and traces is timed where it
happens, which a busy machine changes least. Its cost is told by the sums of all calls, and by the
median of each kind, which leaves the dear ones out.

What stands between other work and is shorter than a look at the clock is timed by itself: the
moment since which a job log waits, and a step's time and totals on their way from the engine
process. What comes by the clock and not by the token is counted by itself as well: the look at
recent times, once a second, and a scrape, every 15 seconds. Spans are made and sent
to a collector, which forgets them, by a process beside the worker: what a traced job costs there is
told last.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
import timeit
from collections import Counter, defaultdict
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

from tokenbus.worker.publishing.job_log import JobLog
from tokenbus.worker.token_moments import NO_MOMENTS
from tokenbus.worker.tracing.span_link import GATHER_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

NUM_JOBS, NUM_TOKENS, BATCH = 64, 512, 64
STEP_TOTALS = 9
SCRAPE_EVERY_S = 15
PLACES = ("metrics", "traces")
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
# None of what is timed takes a tenth of it.
_WAITED_NS = 1_000_000
# What is done seldom and for much at once: of the thread's own time, whose clock is dear to read,
# so that nothing has to be left out.
_LONG = (("Metrics", "count"), ("SpanLink", "_send"))
_TRACING = ("JobTraces", "SpanLink")
# The process that sends spans does so when it has many, or every five seconds.
_SENT_S = 6.0
_TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def _places() -> list[tuple[Any, str]]:
    """Return all that notes, counts or tells while jobs run, as class and name."""
    from tokenbus.producer.telemetry.histogram import Histogram
    from tokenbus.worker.held.job_traces import JobTraces
    from tokenbus.worker.held.token_times import TokenTimes
    from tokenbus.worker.metrics import Metrics
    from tokenbus.worker.tracing.span_link import SpanLink

    return [
        *((Metrics, name) for name in ("stepped", "published", "left", "count")),
        *((TokenTimes, name) for name in ("begin", "stepped", "end")),
        (Histogram, "add"),
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


def _nothing(_: str, does: Callable[..., Any]) -> Callable[..., Any]:
    found = NO_MOMENTS if does.__name__ == "end" else None
    return lambda *_, **__: found


class _Stopwatch:
    """Times the calls of the places, outer ones alone, without what timing them takes.

    That is told by a call in the same way that does nothing, right before each, where it happens: a
    first look at the clock takes longer there than one of many. What a call that does nothing takes
    by itself is added again. The clock is the machine's, which costs least to read, but for what is
    done for much at once; a call that had to wait for a processor meanwhile counts as the others of
    its kind.
    """

    def __init__(self) -> None:
        self._ns: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._num_calls: Counter[tuple[str, str]] = Counter()
        self._earlier: dict[tuple[str, str], list[int]] = {}
        self._is_running = False
        self._call_ns = _ns(_idle, 10_000)

    def begin_load(self) -> None:
        """Forget how many calls there were; what some took is kept for a load that has none."""
        self._earlier |= self._ns
        self._ns = defaultdict(list)
        self._num_calls.clear()

    def us_a_token(self, of: Callable[[list[int]], float]) -> dict[str, float]:
        """Return what each place costs a token of one load, `of` telling it of a call from all."""
        spent = {}
        for key, num in self._num_calls.items():
            calls = self._ns[key] or self._earlier.get(key, [])
            if calls:
                spent[".".join(key)] = num * of(calls) / 1e3 / NUM_JOBS / NUM_TOKENS
        return spent

    def made(self, owner: str, does: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and is timed."""
        key = owner, does.__name__
        look = time.thread_time_ns if key in _LONG else time.perf_counter_ns

        def timed(*args: Any, **words: Any) -> Any:
            if self._is_running:
                return does(*args, **words)
            self._is_running = True
            idle_from = look()
            _idle(*args, **words)
            began_at = look()
            try:
                return does(*args, **words)
            finally:
                ended_at = look()
                self._num_calls[key] += 1
                if ended_at - idle_from < _WAITED_NS:
                    spent = ended_at - began_at - (began_at - idle_from)
                    self._ns[key].append(spent + self._call_ns)
                self._is_running = False

        return timed


class _CallCounter:
    """Counts the calls of one load, those of Python and of C: no other work changes them."""

    def __init__(self) -> None:
        self._is_inside = False
        self.num_all = self.num_inside = 0

    def made(self, _: str, does: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and whose calls are those of a place."""

        def counted(*args: Any, **words: Any) -> Any:
            was_inside, self._is_inside = self._is_inside, True
            try:
                return does(*args, **words)
            finally:
                self._is_inside = was_inside

        return counted

    async def count(self, worker: Any, client: asyncio.subprocess.Process, way: str) -> None:
        """Run a load and count."""
        with _replaced(self.made):
            sys.setprofile(self._see)
            try:
                await _load(worker, client, way)
            finally:
                sys.setprofile(None)

    def _see(self, _frame: object, event: str, _called: object) -> None:
        if event in {"call", "c_call"}:
            self.num_all += 1
            self.num_inside += self._is_inside


def _idle(*_: Any, **__: Any) -> None:
    """Do nothing."""


async def _take_results(url: str) -> None:
    """Run the load that each line of the standard input names, and say so when it is done."""
    from tokenbus.producer.client.async_client import AsyncClient

    async with await AsyncClient.connect(url) as client:
        while way := (await asyncio.to_thread(sys.stdin.readline)).strip():
            request: dict[str, Any] = {"prompt": "x", "max_tokens": NUM_TOKENS, "ignore_eos": True}
            if way == "metrics and traces":
                request["traceparent"] = _TRACEPARENT
            jobs = await client.submit_many([request for _ in range(NUM_JOBS)])
            await client.results(jobs)
            print("done", flush=True)


@asynccontextmanager
async def _client(url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a client in a process beside us."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--client", url,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def _load(worker: Any, client: asyncio.subprocess.Process, way: str) -> float:
    """Run one load until all jobs have left; return the processor time, in us a token."""
    assert client.stdin is not None
    assert client.stdout is not None
    cpu_at = time.process_time()
    client.stdin.write(f"{way}\n".encode())
    assert await client.stdout.readline() == b"done\n"
    while worker.num_held:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.001)
    # Traced jobs go to the process that makes their spans.
    await asyncio.sleep(2 * GATHER_S)
    # What is noted is counted, as it is once a second: by the end of a load at the latest.
    worker.metrics.count()
    return 1e6 * (time.process_time() - cpu_at) / (NUM_JOBS * NUM_TOKENS)


@dataclass
class _Found:
    """Processor time a token, in us, round by round: of whole loads by their way, and of places.

    Beside it how many entries and calls on logs a token had, the calls in places and all of a load,
    and what the span process took, in us a traced job.
    """

    ways: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    sums: list[dict[str, float]] = field(default_factory=list)
    medians: list[dict[str, float]] = field(default_factory=list)
    entries: list[float] = field(default_factory=list)
    log_calls: list[float] = field(default_factory=list)
    calls: list[tuple[int, int]] = field(default_factory=list)
    job_us: float = 0.0

    def of(self, places: list[dict[str, float]], kind: str) -> list[float]:
        """Return what metrics or traces cost, round by round."""
        return [
            sum(
                us
                for name, us in each.items()
                if (name.split(".")[0] in _TRACING) is (kind == "traces")
            )
            for each in places
        ]


async def _rounds(number: int, ways: Sequence[str], last: str, endpoint: str | None) -> _Found:
    """Run rounds: a load of each of `ways`, and one of the way `last`, whose places are timed."""
    from tokenbus.producer.server.embedded import start_private
    from tokenbus.worker.settings import WorkerSettings
    from tokenbus.worker.supervisor import Worker

    server = await asyncio.to_thread(start_private)
    settings = WorkerSettings.load(
        redis_url=server.url, engine="null", publishers=0, log_level="error", num_pages=20_000,
        max_num_seqs=BATCH, trace_endpoint=endpoint,
    )  # fmt: skip
    found, watch = _Found(), _Stopwatch()
    try:
        async with Worker(settings) as worker, _client(server.url) as client:
            # What comes lazily comes first.
            await _load(worker, client, last)
            sender = await _sender(worker)
            began_s = _cpu_s(sender)
            for at in range(number):
                turn = at % len(ways)
                for way in (*ways[turn:], *ways[:turn]):
                    with _replaced(_nothing) if way == "nothing" else nullcontext():
                        found.ways[way].append(await _load(worker, client, way))
                entries, log_calls = worker.metrics.log_entries, worker.metrics.log_calls
                watch.begin_load()
                with _replaced(watch.made):
                    await _load(worker, client, last)
                entries = worker.metrics.log_entries - entries
                log_calls = worker.metrics.log_calls - log_calls
                found.log_calls.append(log_calls / NUM_JOBS / NUM_TOKENS)
                found.entries.append(entries / NUM_JOBS / NUM_TOKENS)
                found.sums.append(watch.us_a_token(statistics.mean))
                found.medians.append(watch.us_a_token(statistics.median))
            counter = _CallCounter()
            await counter.count(worker, client, last)
            found.calls.append((counter.num_inside, counter.num_all))
            if sender is not None:
                await asyncio.sleep(_SENT_S)
            # The loads of the last way, and those that are timed where it happens.
            num_traced = ((1 + (last in ways)) * number + 1) * NUM_JOBS
            found.job_us = 1e6 * (_cpu_s(sender) - began_s) / num_traced
    finally:
        server.close()
    return found


async def _sender(worker: Any) -> psutil.Process | None:
    """Return the process that sends spans, once it has sent those of a first load."""
    link = worker._span_link
    if link is None:
        return None
    await asyncio.sleep(_SENT_S)
    return psutil.Process(link.pid)


def _cpu_s(process: psutil.Process | None) -> float:
    return 0.0 if process is None else sum(process.cpu_times()[:2])


def _ns(does: Callable[[], object], number: int) -> float:
    """Return the processor time of a call, in ns: the median of rounds of `number` calls."""
    rounds = timeit.Timer(does, timer=time.process_time).repeat(9, number)
    return 1e9 * statistics.median(rounds) / number


def _waiting_us(entries: float) -> float:
    """Return what it costs a token that its log knows since when it waits, in us.

    `entries` is how many a token has. Where the log waits already, nothing is noted.
    """
    jobs = [JobLog.__new__(JobLog) for _ in range(BATCH)]
    for job in jobs:
        job.unlogged_since, job.last = None, 1

    def loop() -> None:
        for _ in jobs:
            pass

    def read() -> None:
        for job in jobs:
            if job.unlogged_since is None:
                job.unlogged_since = 1.5

    def packed() -> None:
        read()
        [job.unlogged_since or 2.5 for job in jobs]
        for job in jobs:
            if job.last == 1:
                job.unlogged_since = None

    empty = _ns(loop, 2000)
    an_entry, a_token = _ns(packed, 2000) - 2 * empty, _ns(read, 2000) - empty
    return (entries * an_entry + (1 - entries) * a_token) / BATCH / 1e3


def _calls_us(log_calls: float) -> float:
    """Return what it costs a token that calls on logs are noted, so many a token, in us."""
    sinces: list[float] = []

    def note() -> None:
        noted: list[tuple[list[float], float, float]] = []
        for _ in range(BATCH):
            noted.append((sinces, 1.5, 2.5))  # noqa: PERF401 - as it is done call by call

    return log_calls * _ns(note, 2000) / BATCH / 1e3


def _step_us() -> float:
    """Return what a step's time and totals cost a token in both processes, in us."""
    told = [*range(10**6, 10**6 + STEP_TOTALS), 0.01]
    encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode
    more = _ns(lambda: decode(encode(told)), 5000) - _ns(lambda: decode(encode([])), 5000)
    return (more + _ns(lambda: time.monotonic() - 1.5, 5000)) / BATCH / 1e3


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


def _asked_ms() -> tuple[float, float]:
    """Return the processor time of a scrape with twenty tenants at each priority, and of a look."""
    from prometheus_client import CollectorRegistry, generate_latest
    from workers.parts import a_member, an_engine

    from tokenbus.engine.chat.usage import Usage
    from tokenbus.engine.types import EngineStats
    from tokenbus.producer.contract.events import Finish
    from tokenbus.worker.life import WorkerLife
    from tokenbus.worker.pool.recent_times import RecentTimes
    from tokenbus.worker.settings import WorkerSettings
    from tokenbus.worker.telemetry.exporter import Exporter

    member, (engine, _) = a_member(), an_engine()
    member.session.num_losses = 0
    link: Any = engine.link
    link.stats = EngineStats(100, 50, 10, 3, 2)
    for priority in range(3):
        for tenant in range(20):
            member.metrics.left(priority, f"t{tenant}", "finished", Finish("stop", Usage(1, 1, 1)))
        for bucket in range(10):
            for each in (member.metrics.queue_time, member.metrics.itl, member.metrics.e2e):
                each[priority].add_counts({bucket: 5}, 1.0)
    exporter = Exporter(WorkerSettings.load(engine="null"), WorkerLife(lambda *_: None))
    exporter.attach(member, engine, model="null", total_pages=99)
    registry, recent_times = CollectorRegistry(), RecentTimes(member.metrics)
    registry.register(exporter)

    def look() -> None:
        recent_times.look()
        member.metrics.as_dict()

    return _ns(lambda: generate_latest(registry), 5) / 1e6, _ns(look, 20) / 1e6


def _quartiles(values: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:6.3f} us ({low:.3f} to {high:.3f})"


def _tell(found: _Found, kinds: Sequence[str], *, each: bool) -> None:
    """Print what everything costs a token, and which share of a load without it that is."""
    base = statistics.median(found.ways["nothing"])
    entries = statistics.median(found.entries)
    scrape_ms, look_ms = _asked_ms()
    beside = {
        f"waiting logs, {entries:.2f} entries a token": _waiting_us(entries),
        "notes of calls on logs": _calls_us(statistics.median(found.log_calls)),
        "a step's time and totals": _step_us(),
        "a look at recent times a second": base * look_ms / 1e3,
        f"a scrape every {SCRAPE_EVERY_S} s": base * scrape_ms / 1e3 / SCRAPE_EVERY_S,
    }
    for name, places in (("sums", found.sums), ("medians", found.medians)):
        spent = {kind: found.of(places, kind) for kind in kinds}
        spent["all of these"] = [sum(parts) for parts in zip(*spent.values(), strict=True)]
        for kind, values in spent.items():
            share = statistics.median(values) / base
            print(f"{f'{kind}, by {name}':36} {_quartiles(values)} a token, {share:.2%} of all")
        whole = statistics.median(spent["all of these"]) + sum(beside.values())
        print(f"{f'with what follows, by {name}':36} {whole:6.3f} us a token, {whole / base:.2%}")
    for name, us in beside.items():
        print(f"{name:36} {us:6.3f} us a token, {us / base:.2%} of all")
    for name in sorted(found.sums[0]) if each else ():
        both = (statistics.median(r.get(name, 0.0) for r in p) for p in (found.sums, found.medians))
        print("  {:34} {:6.4f} and {:6.4f} us a token".format(name, *both))
    for way, values in found.ways.items():
        more = [value - other for value, other in zip(values, found.ways["nothing"], strict=True)]
        share = statistics.median(more) / base
        print(f"{way:36} {_quartiles(values)} a token; more {_quartiles(more)}, {share:+.1%}")
    inside, every = (sum(column) for column in zip(*found.calls, strict=True))
    tokens = NUM_JOBS * NUM_TOKENS * len(found.calls)
    print(
        f"calls, of Python and C                {inside / tokens:6.3f} a token,"
        f" {inside / tokens * NUM_TOKENS:.0f} a job, of {every / tokens:.1f} a token,"
        f" {inside / every:.2%} of all"
    )
    print(f"a scrape                             {scrape_ms:6.2f} ms of CPU")
    if "traces" in kinds:
        print(f"a traced job, in the process beside  {found.job_us:6.0f} us of CPU")


def main() -> int:
    """Run the rounds and print medians, with the quartiles on both sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--no-traces", action="store_true", help="leave traces out: OpenTelemetry's SDK is not here"
    )
    parser.add_argument(
        "--places-only",
        action="store_true",
        help="compare no whole loads, which takes half as long",
    )
    parser.add_argument("--each", action="store_true", help="tell of each place, sums and medians")
    parser.add_argument("--client", metavar="URL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        asyncio.run(_take_results(args.client))
        return 0
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
    ways = WAYS[:2] if args.no_traces else WAYS
    with nullcontext(None) if args.no_traces else _collector() as endpoint:
        compared = ways[:1] if args.places_only else ways
        found = asyncio.run(_rounds(args.rounds, compared, ways[-1], endpoint))
    _tell(found, PLACES[: len(ways) - 1], each=args.each)
    return 0


if __name__ == "__main__":
    sys.exit(main())
