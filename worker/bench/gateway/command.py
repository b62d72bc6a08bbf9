"""`tokenbus bench gateway`: deployment, gateway, load and report put together."""

from __future__ import annotations

import asyncio
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.table import Table

from tokenbus.worker import logs
from tokenbus.worker.bench.deployment import Deployment
from tokenbus.worker.bench.gateway.children import GatewayProcess
from tokenbus.worker.bench.gateway.figures import GatewayFigures  # noqa: TC001 - msgspec reads it
from tokenbus.worker.bench.gateway.options import PROMPT_TOKENS
from tokenbus.worker.bench.gateway.run import GatewayRun
from tokenbus.worker.bench.measure.report import describe_machine
from tokenbus.worker.bench.options import BenchOptions
from tokenbus.worker.errors import SettingsInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenbus.worker.bench.gateway.options import GatewayBenchOptions
    from tokenbus.worker.bench.measure.distribution import Distribution

# Tokens of a page of the null engine, and what the template adds to a prompt at most.
_PAGE_TOKENS = 16
_TEMPLATE_TOKENS = 64
# Fewer cores than this are shared by all.
_MIN_CORES = 4


class GatewayReport(msgspec.Struct, frozen=True):
    """Everything that one call of the bench found out."""

    command: list[str]
    machine: dict[str, str]
    figures: GatewayFigures


def run_gateway_bench(options: GatewayBenchOptions, command: Sequence[str]) -> int:
    """Run the bench and print its figures; return 0 if every stream ended as it should."""
    console = Console(highlight=False)
    logs.configure("warning", "console")
    report = asyncio.run(_measure(options, command, lambda text: console.print(text, style="dim")))
    console.print(_table(report.figures))
    for fault in report.figures.faults:
        console.print(f"fault: {fault}", markup=False)
    if options.json is not None:
        Path(options.json).write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    return 1 if report.figures.faults else 0


async def _measure(
    options: GatewayBenchOptions, command: Sequence[str], tell: Callable[[str], None]
) -> GatewayReport:
    core = _own_core(options)
    async with Deployment(pool_options(options)) as deployment:
        info = await deployment.redis.info("server")
        name, version = info.get("server_name", "redis"), info["redis_version"]
        machine = describe_machine(f"{name} {info.get('valkey_version', version)}")
        async with GatewayProcess(deployment.url, deployment.keys.pool, core) as gateway:
            figures = await GatewayRun(deployment, gateway, options, tell).run()
    return GatewayReport(list(command), machine, figures)


def pool_options(options: GatewayBenchOptions) -> BenchOptions:
    """Return the options of a deployment on which all streams run at once."""
    rows = math.ceil(options.streams / options.workers) + 1
    num_pages = math.ceil((_TEMPLATE_TOKENS + PROMPT_TOKENS + options.max_tokens) / _PAGE_TOKENS)
    return BenchOptions(
        redis=options.redis,
        workers=options.workers,
        worker={
            "null_tokens_per_s": 0.0 if options.idle else options.tokens_per_s,
            "max_num_seqs": min(rows, 512) if options.idle else rows,
            "num_pages": 2 + (num_pages + 1) * rows,
        },
    )


def _own_core(options: GatewayBenchOptions) -> int | None:
    """Take one core for the gateway alone, where that was asked for; all else gets the others."""
    if not options.own_core:
        return None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < _MIN_CORES:
        raise SettingsInvalid(
            f"--own-core: {len(cores)} cores are too few, {_MIN_CORES} are needed"
        )
    os.sched_setaffinity(0, set(cores[:-1]))
    return cores[-1]


def _table(figures: GatewayFigures) -> Table:
    table = Table(show_header=True, box=None, pad_edge=False)
    for column in ("", "p50", "p99", "max"):
        table.add_column(column, justify="left" if not column else "right")

    def times(name: str, found: Distribution) -> None:
        if found.count:
            table.add_row(f"{name}, ms", f"{found.p50:.2f}", f"{found.p99:.2f}", f"{found.max:.1f}")

    def one(name: str, value: str) -> None:
        table.add_row(name, value, "", "")

    one("streams that held", f"{figures.num_ok} of {figures.num_streams}")
    one("tokens in the window", f"{figures.num_tokens} ({figures.tokens_per_s:.0f}/s)")
    times("added over the native client", figures.added_ms)
    times("engine to stream", figures.stream_lag_ms)
    times("engine to native client", figures.native_lag_ms)
    times("request to first token", figures.ttft_ms)
    times("longest silence", figures.longest_silence_ms)
    if figures.cpu_us_per_token:
        one("CPU per token, us: gateway", f"{figures.cpu_us_per_token:.1f}")
    if figures.native_cpu_us_per_token:
        one("CPU per token, us: native reader", f"{figures.native_cpu_us_per_token:.1f}")
    one("cores of the gateway", f"{figures.gateway_cores:.3f}")
    one("memory per stream, KiB", f"{figures.memory_per_stream_bytes / 1024:.1f}")
    return table
