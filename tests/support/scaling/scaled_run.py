"""A pool under an autoscaler: load from a trace, workers that come and go, and what was seen.

Everything is real but the engine and the autoscaler: server, control service, Prometheus and
workers are processes as they are deployed. Time runs `speed` times as fast: arrivals, the
autoscaler's own times, and its threshold in seconds. The start of a process is as slow as it is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from scaling.prometheus import Prometheus, prometheus
from scaling.scaled_object import SYNC_S, Autoscaler, ScaledObject
from servers.ports import free_port

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.client.pool_figures import read_figures
from tokenbus.producer.client.watching.ended_jobs import EndedJobs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tokenbus.producer.client.backlog import Assumed
    from tokenbus.producer.errors import ProducerError
    from tokenbus.producer.scripts.timeline import EndedJob
    from tokenbus.worker.bench.load.arrivals import TraceRow

_COMMAND = (
    "import sys; from tokenbus.producer.commands.cli import main; sys.exit(main(sys.argv[1:]))"
)
# How often the monitor reads the control service, of deploy/kubernetes.
SCRAPE_S = 10.0
MINUTE_S = 60.0
_TICK_S = 0.02


@dataclass(frozen=True, slots=True)
class GaugeSample:
    """The gauge at one moment, `at_s` after the first arrival; `at_ms` is the server's time."""

    at_s: float
    at_ms: int
    backlog_s: float
    waiting_jobs: int
    num_ready: int


@dataclass(slots=True)
class ScaledRun:
    """What was seen; times of the server in ms, of workers' starts in seconds as they passed.

    `replicas` has each change of their number with the time, in seconds since the first arrival.
    """

    num_accepted: int = 0
    refusals: list[ProducerError] = field(default_factory=list)
    ended: list[EndedJob] = field(default_factory=list)
    samples: list[GaugeSample] = field(default_factory=list)
    replicas: list[tuple[float, int]] = field(default_factory=list)
    starts_s: list[float] = field(default_factory=list)

    @property
    def num_cold_starts(self) -> int:
        """Count how often the first worker had to be woken."""
        counts = [0, *(number for _, number in self.replicas)]
        return sum(not before and after > 0 for before, after in pairwise(counts))

    def has_grown(self, sample: GaugeSample, waited_s: float) -> bool:
        """Tell whether workers were added, not removed, while what waited then was started."""
        return any(
            sample.at_s <= at <= sample.at_s + waited_s and after > before
            for (_, before), (at, after) in pairwise([(0.0, 0), *self.replicas])
        )

    def waited_s(self, at_ms: int) -> float:
        """Return after how long the last job was started that waited at a moment, 0 if none did."""
        starts = [
            job.created_ms + (job.queue_ms or 0) for job in self.ended if job.created_ms <= at_ms
        ]
        return max(0, max(starts, default=0) - at_ms) / 1000


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    port: int
    began_at: float
    is_ready: bool = False


@dataclass(slots=True)
class ScaledPool:
    """The processes of one run; `worker` are settings of the workers by name."""

    redis_url: str
    scaled: ScaledObject
    speed: float
    worker: dict[str, Any]
    watcher: Prometheus
    assumed: Assumed
    run: ScaledRun = field(default_factory=ScaledRun)
    _workers: list[_Worker] = field(default_factory=list)
    _leaving: list[_Worker] = field(default_factory=list)
    _began_at: float = 0.0

    async def serve(self, rows: Sequence[TraceRow]) -> ScaledRun:
        """Send the load, scale until no worker is left, and return what was seen."""
        async with await AsyncClient.connect(self.redis_url) as client:
            while await self._value("sum(tokenbus_pool_held_jobs)") is None:  # noqa: ASYNC110
                await asyncio.sleep(_TICK_S)
            self._began_at = time.monotonic()
            autoscaler = Autoscaler(self.scaled)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._scale(autoscaler)),
                    group.create_task(self._watch(client)),
                ]
                await self._send(client, rows)
                while len(self.run.ended) < self.run.num_accepted or autoscaler.replicas:  # noqa: ASYNC110
                    await asyncio.sleep(_TICK_S)
                for task in tasks:
                    task.cancel()
        return self.run

    @property
    def _now(self) -> float:
        """Return the seconds since the first arrival, at the speed of the run."""
        return (time.monotonic() - self._began_at) * self.speed

    async def _send(self, client: AsyncClient, rows: Sequence[TraceRow]) -> None:
        sent = 0
        while sent < len(rows):
            due = sent
            while due < len(rows) and rows[due].at_s <= self._now:
                due += 1
            if due > sent:
                answers = await client.submit_many([_request(row) for row in rows[sent:due]])
                self.run.num_accepted += sum(not isinstance(each, Exception) for each in answers)
                self.run.refusals += [each for each in answers if isinstance(each, Exception)]
                sent = due
            await asyncio.sleep(_TICK_S)

    async def _watch(self, client: AsyncClient) -> None:
        """Follow the jobs that end, and look at the gauge every minute."""
        redis, keys = client.scripts.redis, client.scripts.keys
        ended, taken, minute = EndedJobs(redis, keys), 0, 0
        while True:
            await ended.read()
            self.run.ended += list(ended.jobs)[len(ended.jobs) - (ended.num_seen - taken) :]
            taken = ended.num_seen
            if self._now >= minute * MINUTE_S:
                figures = await read_figures(redis, keys, assumed=self.assumed)
                status = figures.status
                self.run.samples.append(
                    GaugeSample(
                        self._now,
                        figures.at_ms,
                        figures.seconds_of_backlog,
                        status.waiting_jobs,
                        len(status.ready),
                    )
                )
                minute += 1
            await self._look_who_is_ready()
            await asyncio.sleep(0.1)

    async def _scale(self, autoscaler: Autoscaler) -> None:
        """Let the autoscaler look as often as it does, and do what it says."""
        polled_at = synced_at = float("-inf")
        while True:
            now = self._now
            if now - polled_at >= self.scaled.polling_s:
                polled_at = now
                autoscaler.poll(now, await self._values())
            if now - synced_at >= SYNC_S:
                synced_at = now
                autoscaler.sync(now, self._num_ready, await self._values())
            self._apply(autoscaler.replicas)
            await asyncio.sleep(_TICK_S)

    async def _values(self) -> list[float | None]:
        """Ask for the figure of each trigger; one in seconds passes as fast as the run does."""
        values = [await self._value(each.query) for each in self.scaled.triggers]
        return [
            value * self.speed if value is not None and "_seconds" in trigger.query else value
            for trigger, value in zip(self.scaled.triggers, values, strict=True)
        ]

    async def _value(self, query: str) -> float | None:
        try:
            return await asyncio.to_thread(self.watcher.value, query)
        except OSError:
            return None

    @property
    def _num_ready(self) -> int:
        return sum(each.is_ready for each in self._workers)

    async def _look_who_is_ready(self) -> None:
        """Ask the probes of the workers that start."""
        for each in list(self._workers):
            if not each.is_ready and await asyncio.to_thread(_is_ready, each.port):
                each.is_ready = True
                self.run.starts_s.append(time.monotonic() - each.began_at)

    def _apply(self, replicas: int) -> None:
        if replicas != len(self._workers):
            self.run.replicas.append((self._now, replicas))
        while len(self._workers) < replicas:
            self._workers.append(self._start())
        while len(self._workers) > replicas:
            leaving = self._workers.pop()
            leaving.process.send_signal(signal.SIGTERM)
            self._leaving.append(leaving)

    def _start(self) -> _Worker:
        port = free_port()
        given = {"engine": "null", "log_level": "error", "metrics_port": port} | self.worker
        return _Worker(_process("worker", self.redis_url, given), port, time.monotonic())

    def close(self) -> None:
        """End what is left."""
        for each in [*self._workers, *self._leaving]:
            each.process.kill()
            each.process.wait()


@contextmanager
def scaled_pool(
    redis_url: str,
    folder: Path,
    scaled: ScaledObject,
    *,
    speed: float,
    worker: dict[str, Any],
    assumed: Assumed,
) -> Iterator[ScaledPool]:
    """Run a control service and a Prometheus that reads it, and what the autoscaler starts."""
    port = free_port()
    every_ms = round(1000 * SCRAPE_S / speed)
    given = {"metrics_port": port, "log_level": "error"}
    given |= {f"assumed_{name}": value for name, value in asdict(assumed).items()}
    service = _process("control", redis_url, given)
    try:
        with prometheus(folder, [port], every_ms=every_ms) as watcher:
            pool = ScaledPool(redis_url, scaled, speed, worker, watcher, assumed)
            try:
                yield pool
            finally:
                pool.close()
    finally:
        service.kill()
        service.wait()


def _process(name: str, redis_url: str, given: dict[str, Any]) -> subprocess.Popen[bytes]:
    env = {f"TOKENBUS_{key.upper()}": str(value) for key, value in given.items()}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _COMMAND, name, "--redis", redis_url], env=os.environ | env
    )


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return True
    except OSError:
        return False


def _request(row: TraceRow) -> dict[str, Any]:
    # Ids that differ from job to job share no pages.
    prompt = [256 + (row.output_tokens + at) % 256 for at in range(max(1, row.input_tokens))]
    return {"token_ids": prompt, "max_tokens": max(1, row.output_tokens), "ignore_eos": True}
