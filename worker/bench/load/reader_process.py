"""A reader process: submits its share of the jobs, reads their streams, reports to the bench.

Runs as `python -m tokenbus.worker.bench.load.reader_process`; orders come on stdin, reports leave
on stdout. It ends with its work, when stdin closes, or at the time that Go names.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import ProducerError
from tokenbus.producer.settings import ClientSettings
from tokenbus.worker.bench.load.arrivals import arrivals
from tokenbus.worker.bench.load.messages import (
    FROM_READER,
    TO_READER,
    Done,
    Go,
    LoadOrder,
    LoadProgress,
    ReaderFailed,
    ReaderReady,
)
from tokenbus.worker.bench.load.simulated_client import SimulatedClient
from tokenbus.worker.bench.load.workload import Workload

if TYPE_CHECKING:
    from tokenbus.worker.bench.load.arrivals import Arrival
    from tokenbus.worker.bench.load.messages import FromReader, JobReport

_REPORT_S = 0.25
_CANCEL_TIMEOUT_S = 10.0
# Requests made ready before the start, so that the first jobs do not wait for each other's.
_NUM_AHEAD = 4096
# Jobs of one round trip where all come at once: the first are running before the last are sent.
_NUM_TOGETHER = 64


class ReaderProcess:
    """The jobs of one reader."""

    def __init__(self, order: LoadOrder, client: AsyncClient) -> None:
        self._options = order.options
        self._client = client
        self._workload = Workload(order.options)
        self._share = slice(order.reader_idx, None, order.num_readers)
        self._plan: list[Arrival] = []
        if order.options.is_open_loop:
            self._plan = arrivals(order.options, self._workload.num_jobs)[self._share]
        self._ready = {
            arrival.number: self._workload.job(arrival.number)
            for arrival in self._plan[:_NUM_AHEAD]
        }
        self._open: set[SimulatedClient] = set()
        self._ended: list[JobReport] = []
        self._num_submitted = 0
        self._num_tokens = 0

    async def run(self, go: Go) -> None:
        """Drive all jobs to their ends, or give them up."""
        try:
            async with asyncio.timeout(go.give_up_s - time.monotonic()):
                await asyncio.sleep(go.start_s - time.monotonic())
                await (self._open_loop(go) if self._options.is_open_loop else self._users(go))
        except TimeoutError:
            await self._give_up()

    def progress(self) -> LoadProgress:
        """Return what happened since the last time."""
        ended, self._ended = self._ended, []
        num_tokens = self._num_tokens + sum(
            simulated_client.num_tokens for simulated_client in self._open
        )
        return LoadProgress(
            num_submitted=self._num_submitted,
            num_open=len(self._open),
            num_tokens=num_tokens,
            ended=ended,
        )

    async def _open_loop(self, go: Go) -> None:
        async with asyncio.TaskGroup() as tasks:
            if self._options.arrival == "at-once":
                await self._submit_together(go, tasks)
                return
            for arrival in self._plan:
                at_s = go.start_s + arrival.at_s
                if (pause_s := at_s - time.monotonic()) > 0:
                    await asyncio.sleep(pause_s)
                tasks.create_task(self._run_job(arrival.number, arrival.phase, at_s))

    async def _submit_together(self, go: Go, tasks: asyncio.TaskGroup) -> None:
        """Submit everything in order, many a round trip."""
        for first in range(0, len(self._plan), _NUM_TOGETHER):
            simulated_clients = [
                self._simulated_client(arrival.number, arrival.phase, go.start_s)
                for arrival in self._plan[first : first + _NUM_TOGETHER]
            ]
            submitted_s = time.monotonic()
            answers = await self._client.submit_many(
                [simulated_client.request for simulated_client in simulated_clients]
            )
            now = time.monotonic()
            for simulated_client, answer in zip(simulated_clients, answers, strict=True):
                simulated_client.answered(answer, submitted_s, now)
                tasks.create_task(self._follow(simulated_client))

    async def _users(self, go: Go) -> None:
        options = self._options
        users = range(options.users)[self._share]
        async with asyncio.TaskGroup() as tasks:
            for user in users:
                begin_s = go.start_s + options.ramp_s * user / options.users
                tasks.create_task(self._user(user, begin_s, go.stop_s))

    async def _user(self, user: int, begin_s: float, stop_s: float) -> None:
        """Send one job after the other; a user goes round with the number of users as stride."""
        await asyncio.sleep(begin_s - time.monotonic())
        limit = min(self._options.jobs or sys.maxsize, self._workload.num_jobs or sys.maxsize)
        number = user
        while number < limit and (now := time.monotonic()) < stop_s:
            await self._run_job(number, "all", now)
            number += self._options.users

    async def _run_job(self, number: int, phase: str, at_s: float) -> None:
        await self._follow(self._simulated_client(number, phase, at_s))

    def _simulated_client(self, number: int, phase: str, at_s: float) -> SimulatedClient:
        job = self._ready.pop(number, None) or self._workload.job(number)
        simulated_client = SimulatedClient(self._client, self._options, job, phase=phase, at_s=at_s)
        self._open.add(simulated_client)
        self._num_submitted += 1
        return simulated_client

    async def _follow(self, simulated_client: SimulatedClient) -> None:
        await simulated_client.ride()
        self._close(simulated_client)

    def _close(self, simulated_client: SimulatedClient) -> None:
        self._open.discard(simulated_client)
        self._num_tokens += simulated_client.num_tokens
        self._ended.append(simulated_client.report())

    async def _give_up(self) -> None:
        """Report what is left as unfinished and cancel it, so that a server of others is freed."""
        left = list(self._open)
        for simulated_client in left:
            self._close(simulated_client)
        jobs = [
            simulated_client.job for simulated_client in left if simulated_client.job is not None
        ]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CANCEL_TIMEOUT_S):
                cancels = (self._client.cancel(job) for job in jobs)
                await asyncio.gather(*cancels, return_exceptions=True)


class Reports:
    """The way back to the bench: whole frames, one after the other."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def send(self, message: FromReader) -> None:
        """Send one message."""
        self._writer.write(FROM_READER.encode(message))
        await self._writer.drain()


def client_settings(order: LoadOrder) -> ClientSettings:
    """Return the settings of the reader's client."""
    bounds: dict[str, Any] = {
        "max_tenant_tokens": order.options.max_tenant_tokens,
        "max_pool_tokens": order.options.max_pool_tokens,
    }
    given = {name: value for name, value in bounds.items() if value is not None}
    return ClientSettings(redis_url=order.url, **given)


async def _serve(orders: asyncio.StreamReader, reports: Reports) -> None:
    order = await TO_READER.read(orders)
    assert isinstance(order, LoadOrder), "the first message is no order"
    settings = client_settings(order)
    async with await AsyncClient.connect(order.url, order.pool, settings) as client:
        reader = ReaderProcess(order, client)
        await reports.send(ReaderReady())
        go = await TO_READER.read(orders)
        assert isinstance(go, Go), "the second message is no start"
        cpu_s = time.process_time()
        run = asyncio.create_task(reader.run(go))
        hang_up = asyncio.create_task(orders.read(1))
        while not run.done() and not hang_up.done():
            await asyncio.wait([run, hang_up], timeout=_REPORT_S,
                return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
            await reports.send(reader.progress())
        if hang_up.done():
            run.cancel()
            return
        hang_up.cancel()
        run.result()
        # What ended while the frame before was being sent.
        await reports.send(reader.progress())
        await reports.send(Done(time.process_time() - cpu_s))


async def _main() -> int:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    # Nothing that prints may disturb the frames.
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, pipe)
    reports = Reports(asyncio.StreamWriter(transport, protocol, None, loop))
    try:
        await _serve(orders, reports)
    except asyncio.IncompleteReadError:
        return 1  # the bench is gone
    except ProducerError as error:
        await reports.send(ReaderFailed(f"{type(error).__name__}: {error}"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
