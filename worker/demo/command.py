"""`tokenbus demo`: the bus, the taxi, and how they compare."""

from __future__ import annotations

import asyncio
import math
import os
import uuid
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tokenbus.engine.weights import model_store
from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.server.connection import open_server
from tokenbus.producer.terminal import ProgressLine
from tokenbus.worker import logs
from tokenbus.worker.demo.figures import BusFigures
from tokenbus.worker.demo.jobs import shop_jobs
from tokenbus.worker.demo.report import DemoReport, bus_table, taxi_lines
from tokenbus.worker.demo.ride import BusRide
from tokenbus.worker.demo.taxi import TaxiOrder, TaxiRide, drive_taxi
from tokenbus.worker.demo.view import LiveView, PlainView
from tokenbus.worker.errors import EngineDied, SettingsInvalid
from tokenbus.worker.settings import WorkerSettings
from tokenbus.worker.supervisor import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.worker.demo.view import BusState, View

# A worker that is well says nothing beside the picture.
LOG_LEVEL = "warning"
# The jobs' prompts are shorter than this, so the default pool has a seat for everyone.
MAX_PROMPT_TOKENS = 512
SMALLEST_PAGE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line asks for; counts in jobs, tokens, pages and threads, times in s."""

    model: str = "smollm2-135m"
    jobs: int = 24
    max_tokens: int = 128
    threads: int | None = None
    dtype: str = "bfloat16"
    num_pages: int | None = None
    redis: str = "embedded://"
    taxi_jobs: int = 9
    skip_taxi: bool = False
    plain: bool = False
    json: str | None = None
    timeout_s: float = 900.0

    def __post_init__(self) -> None:
        """Refuse values outside their bounds by the option's name.

        Raises: SettingsInvalid.
        """
        bounds = {"jobs": 10_000, "max_tokens": 100_000, "threads": 1024, "taxi_jobs": 10_000}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in bounds and value is not None and not 1 <= value <= bounds[item.name]:
                option = f"--{item.name.replace('_', '-')}"
                raise SettingsInvalid(f"{option}: {value} is outside 1…{bounds[item.name]}")
        if self.json is not None and not Path(self.json).absolute().parent.is_dir():
            raise SettingsInvalid(f"--json: the folder of {self.json} does not exist")

    @property
    def num_threads(self) -> int:
        """Compute threads of bus and taxi: as asked, else the cores this process may use."""
        return self.threads or len(os.sched_getaffinity(0))

    def worker_settings(self, model: str, pool: str) -> WorkerSettings:
        """Return the settings of the demo's worker."""
        pages_per_job = math.ceil((MAX_PROMPT_TOKENS + self.max_tokens) / SMALLEST_PAGE_TOKENS)
        return WorkerSettings.load(
            pool=pool,
            model=model,
            dtype=self.dtype,
            num_threads=self.num_threads,
            num_pages=self.num_pages or self.jobs * pages_per_job,
            log_level=LOG_LEVEL,
        )


def run_demo(options: DemoOptions) -> int:
    """Drive the bus, then the taxi; return 0 if every job of the bus finished, else 1."""
    console = Console(highlight=False)
    logs.configure(LOG_LEVEL, "console")
    model = options.model
    if model in model_store.ALIASES:
        model = str(model_store.pull(model, ProgressLine(model)))
    bus = asyncio.run(_drive_bus(options, model, console))
    console.print(bus_table(bus))
    report = DemoReport(bus)
    if not options.skip_taxi:
        report = DemoReport(bus, _drive_taxi(options, model, console))
        console.print(*taxi_lines(report, options.num_threads, options.dtype), sep="\n")
    if options.json is not None:
        report.write(Path(options.json))
    return 0 if bus.finished == bus.jobs else 1


async def _drive_bus(options: DemoOptions, model: str, console: Console) -> BusFigures:
    """Start server and worker, send the jobs, and sum up what the readers saw."""
    pool = f"demo-{uuid.uuid4().hex[:8]}"
    console.print(f"Starting the queue and a worker with {options.model} ...")
    server = await open_server(options.redis)
    try:
        settings = options.worker_settings(model, pool)
        async with (
            Worker(settings, server.effective_url, tell_phase=_phase_teller(console)) as worker,
            await AsyncClient.connect(server.effective_url, pool=pool) as client,
        ):
            ride = BusRide(client, shop_jobs(options.jobs), options.max_tokens)
            console.print(f"{options.jobs} jobs get on at once")
            await ride.run(_view(options, console), lambda state: _gauge(worker, state),
                options.timeout_s)  # fmt: skip
            return BusFigures.of(ride.clocks, peak_running=worker.metrics.peak_running)
    finally:
        await server.close()


def _phase_teller(console: Console) -> Callable[[str, int, int], None]:
    """Return what prints a phase of the engine's start, and how long it has taken so far."""

    def tell(phase: str, percent: int, for_s: int) -> None:
        share = f", {percent} %" if percent else ""
        taken = f", {for_s} s" if for_s else ""
        console.print(f"  {phase}{share}{taken}", markup=False)

    return tell


def _view(options: DemoOptions, console: Console) -> View:
    if options.plain or not console.is_terminal:
        return PlainView(console)
    title = f"tokenbus · {options.model} · {options.dtype} · {options.num_threads} threads"
    return LiveView(console, title)


def _gauge(worker: Worker, state: BusState) -> None:
    """Copy the worker's gauges into the picture.

    Raises: EngineDied if the worker has given up; leaving its context then tells why.
    """
    if worker.has_ended:
        raise EngineDied("the worker stopped before the jobs had ended")
    stats = worker.stats
    if stats is None:
        return
    state.num_pages = stats.num_pages
    state.pages_cached = stats.evictable_pages
    state.pages_in_use = stats.num_pages - stats.free_pages - stats.evictable_pages
    state.num_running = stats.num_running


def _drive_taxi(options: DemoOptions, model: str, console: Console) -> TaxiRide:
    """Drive the first jobs one at a time, a line for each."""
    jobs = shop_jobs(options.jobs)[: options.taxi_jobs]
    console.print(f"The taxi takes the first {len(jobs)} of them, one at a time ...")
    order = TaxiOrder(
        model=model,
        chats=[job.messages for job in jobs],
        max_tokens=options.max_tokens,
        num_threads=options.num_threads,
        dtype=options.dtype,
    )

    def arrived(index: int, num_tokens: int, seconds: float) -> None:
        rate = num_tokens / seconds
        console.print(
            f"  job {index + 1}: {num_tokens} tokens in {seconds:.1f} s, {rate:.1f} tok/s"
        )

    def tried(attention: str, tokens_per_s: float) -> None:
        console.print(f"  trying attention {attention}: {tokens_per_s:.1f} tok/s")

    console.print("  loading transformers and the model ...")
    return drive_taxi(order, on_job=arrived, on_trial=tried)
