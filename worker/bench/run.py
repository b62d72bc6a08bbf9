"""A run of the bench: load on a deployment that is up, and everything it measures."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec

from tokenbus.producer.client.pool_status import read_status
from tokenbus.worker.bench.load.arrivals import arrivals, span_s
from tokenbus.worker.bench.load.readers import Readers
from tokenbus.worker.bench.load.workload import Workload
from tokenbus.worker.bench.measure.figures import Measured, sum_up
from tokenbus.worker.bench.measure.processes import cpu_times
from tokenbus.worker.bench.measure.sampler import Sampler
from tokenbus.worker.engine.step_log import read_step_logs

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tokenbus.worker.bench.deployment import Deployment
    from tokenbus.worker.bench.measure.figures import Figures
    from tokenbus.worker.bench.measure.sampler import Sample
    from tokenbus.worker.bench.options import BenchOptions

# An idle engine writes its log out this often.
_STEP_LOG_DELAY_S = 0.75
# How long workers may take to complete the last jobs, and how often that is looked at.
_IDLE_TIMEOUT_S = 3.0
_LOOK_S = 0.02


class RunState(msgspec.Struct):
    """How far a run has come; `num_jobs` is None where nobody knows how many there will be."""

    num_jobs: int | None
    span_s: float
    num_submitted: int = 0
    num_open: int = 0
    num_tokens: int = 0
    sample: Sample | None = None


async def run_load(
    deployment: Deployment, options: BenchOptions, on_state: Callable[[RunState], None]
) -> Figures:
    """Run the load of `options` and return its figures.

    Raises: ReaderBroken, EngineDied, or ServerError if what it runs on fails.
    """
    workload = Workload(options)
    planned = arrivals(options, workload.num_jobs) if options.is_open_loop else []
    limit = options.jobs or workload.num_jobs
    length_s = span_s(options, planned) if options.is_open_loop else options.duration_s
    state = RunState(len(planned) if options.is_open_loop else limit, length_s)
    sampler = Sampler(deployment.redis, deployment.keys)
    async with Readers(options, deployment.url, deployment.keys.pool) as readers:

        def look(sample: Sample) -> None:
            deployment.check_workers()
            state.num_submitted, state.num_open = readers.num_submitted, readers.num_open
            state.num_tokens, state.sample = readers.num_tokens, sample
            on_state(state)

        before = await sampler.counters()
        used = [await cpu_times(deployment.redis, deployment.worker_pids)]

        async def note() -> None:
            await _until_idle(deployment)
            used.append(await cpu_times(deployment.redis, deployment.worker_pids))

        await _until_read(readers.run(length_s, note), sampler.run(look))
        num_tokens = sum(report.output_tokens for report in readers.reports)
        after = await sampler.final_counters(before.tokens_logged + num_tokens)
        await asyncio.sleep(_STEP_LOG_DELAY_S if options.lag else 0)
        return sum_up(
            Measured(
                options=options,
                start_s=readers.start_s,
                span_s=length_s,
                reports=readers.reports,
                handover_times=read_step_logs(deployment.step_logs) if options.lag else {},
                samples=sampler.samples,
                counters=after.since(before),
                cpu=used[-1].since(used[0]),
                reader_cpu_s=readers.cpu_s,
                num_plain=readers.num_plain,
            )
        )


async def _until_idle(deployment: Deployment) -> None:
    """Wait until the workers have completed what they hold, which readers do not wait for."""
    deadline = time.monotonic() + _IDLE_TIMEOUT_S
    while (await read_status(deployment.redis, deployment.keys)).held_jobs:
        if time.monotonic() > deadline:
            return
        await asyncio.sleep(_LOOK_S)


async def _until_read(
    reading: Coroutine[None, None, None], observing: Coroutine[None, None, None]
) -> None:
    """Await the readers' end; what the observer fails with ends both."""
    observer, readers = asyncio.create_task(observing), asyncio.create_task(reading)
    try:
        await asyncio.wait([observer, readers], return_when=asyncio.FIRST_COMPLETED)
        if observer.done():
            observer.result()
        await readers
    finally:
        for task in (observer, readers):
            task.cancel()
        await asyncio.gather(observer, readers, return_exceptions=True)
