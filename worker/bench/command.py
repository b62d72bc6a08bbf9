"""`tokenbus bench pool`: deployment, load and report put together."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tokenbus.engine.null.null_config import NullConfig
from tokenbus.worker import logs
from tokenbus.worker.bench.capacity import measure_capacity, scaled, sweep_users
from tokenbus.worker.bench.deployment import Deployment
from tokenbus.worker.bench.measure.files import write_report
from tokenbus.worker.bench.measure.report import Report, describe_machine, extra_lines
from tokenbus.worker.bench.measure.tables import latency_table, summary_table
from tokenbus.worker.bench.offline import measure_offline
from tokenbus.worker.bench.progress import RunProgress
from tokenbus.worker.bench.run import run_load

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenbus.worker.bench.measure.figures import Figures
    from tokenbus.worker.bench.options import BenchOptions


class PoolBench:
    """One call of the bench."""

    def __init__(self, options: BenchOptions, console: Console, command: Sequence[str]) -> None:
        self._options = options
        self._console = console
        self._report = Report(command=list(command), machine={}, runs=[])

    async def run(self) -> Report:
        """Measure what the options ask for.

        Raises: SettingsInvalid, EngineStartFailed, EngineDied, ReaderBroken, ServerError.
        """
        options, report = self._options, self._report
        if options.offline_compare:
            report.offline = await measure_offline(options, self._tell_offline)
        async with Deployment(options) as deployment:
            self._deployment = deployment
            info = await deployment.redis.info("server")
            name, version = info.get("server_name", "redis"), info["redis_version"]
            report.machine = describe_machine(f"{name} {info.get('valkey_version', version)}")
            if options.load is not None:
                report.capacity_jobs_per_s = await measure_capacity(options, self._measure)
                options = scaled(options, report.capacity_jobs_per_s)
                self._console.print(f"capacity {report.capacity_jobs_per_s:.2f} jobs/s")
            if options.slo:
                report.slo, report.users_at_slo = await sweep_users(options, self._keep)
            else:
                for idx in range(options.repeats):
                    trial = options.replace(run_idx=options.run_idx + idx)
                    await self._keep(trial, f"run {idx + 1} of {options.repeats}")
        if report.offline is not None:
            rates, queued = report.offline.tokens_per_s, [run.tokens_per_s for run in report.runs]
            report.tax = round(max(queued) / max(rates), 4)
            report.median_tax = round(statistics.median(queued) / statistics.median(rates), 4)
        return report

    async def _measure(self, options: BenchOptions, title: str) -> Figures:
        with RunProgress(self._console, title, plain=options.plain) as progress:
            return await run_load(self._deployment, options, progress.show)

    async def _keep(self, options: BenchOptions, title: str) -> Figures:
        figures = await self._measure(options, title)
        self._report.runs.append(figures)
        self._console.print(f"{title}: {figures.tokens_per_s:.1f} tokens/s,"
            f" {figures.jobs_per_s:.1f} jobs/s,"
            f" TTFT p95 {figures.ttft_ms.p95:.1f} ms, TPOT p95 {figures.tpot_ms.p95:.1f} ms,"
            f" lost {figures.num_lost}, faults {figures.num_faults}")  # fmt: skip
        return figures

    def _tell_offline(self, number: int, tokens_per_s: float) -> None:
        self._console.print(f"offline run {number}: {tokens_per_s:.1f} tokens/s")


def run_pool_bench(options: BenchOptions, command: Sequence[str]) -> int:
    """Run the bench and print its figures; return 0 if nothing was lost and no check failed."""
    console = Console(highlight=False)
    logs.configure("warning", "console")
    with _prepared(options) as ready:
        report = asyncio.run(PoolBench(ready, console, command).run())
    console.print(summary_table(report.best))
    console.print(latency_table(report.best))
    for fault in report.best.faults:
        console.print(f"fault: {fault}", markup=False)
    for line in extra_lines(report):
        console.print(line, soft_wrap=True)
    write_report(report, options.json, options.html)
    return 0 if report.is_sound else 1


@contextlib.contextmanager
def _prepared(options: BenchOptions) -> Iterator[BenchOptions]:
    """Find the model and its vocabulary, with a generated tokenizer where that is asked for."""
    if options.engine == "null":
        yield options.replace(vocab_size=NullConfig().vocab_size)
        return
    from tokenbus.engine.text.generated_tokenizer import clothe, vocab_size_of
    from tokenbus.engine.weights.model_place import find_folder

    has_weights = not options.worker.get("random_weights", False)
    folder = find_folder(str(options.worker["model"]), with_weights=has_weights)
    with tempfile.TemporaryDirectory(prefix="tb-model-") as made:
        if options.generate_tokenizer:
            clothe(folder, Path(made), with_weights=has_weights)
            folder = Path(made)
        yield options.replace(
            vocab_size=vocab_size_of(folder), worker=options.worker | {"model": str(folder)}
        )
