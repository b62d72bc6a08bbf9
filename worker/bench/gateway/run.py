"""A run of the bench: streams through one gateway, and native readers of the same jobs."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.worker.bench.gateway.children import ClientBroken, ClientProcess
from tokenbus.worker.bench.gateway.figures import MeasuredStreams, sum_up
from tokenbus.worker.bench.gateway.messages import (
    AllOpened,
    Finished,
    NativeOrder,
    NativeReady,
    NoMoreJobs,
    SseOrder,
    StreamJob,
    StreamTimes,
)
from tokenbus.worker.bench.gateway.sse_stream import SseStream, request_of
from tokenbus.worker.engine.step_log import read_step_logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.worker.bench.deployment import Deployment
    from tokenbus.worker.bench.gateway.children import GatewayProcess
    from tokenbus.worker.bench.gateway.figures import GatewayFigures
    from tokenbus.worker.bench.gateway.options import GatewayBenchOptions

# From the order to the first request, so that every client has its own by then.
_LEAD_S = 1.0
_WARM_UP_TIMEOUT_S = 30.0
_READY_TIMEOUT_S = 60.0
# An idle engine writes its log out this often.
_STEP_LOG_DELAY_S = 0.75


@dataclass(frozen=True, slots=True)
class Window:
    """What is measured of a run: from when to when, CPU times in it, and memory at its end."""

    begin_s: float
    end_s: float
    gateway_cpu_s: float
    native_cpu_s: float
    memory_bytes: int


class GatewayRun:
    """Drives one run to its end and sums it up."""

    def __init__(
        self,
        deployment: Deployment,
        gateway: GatewayProcess,
        options: GatewayBenchOptions,
        tell: Callable[[str], None],
    ) -> None:
        self._deployment = deployment
        self._gateway = gateway
        self._options = options
        self._tell = tell
        self._clients: list[ClientProcess] = []
        self._natives: list[ClientProcess] = []
        self._streams: list[StreamTimes] = []
        self._native_streams: list[StreamTimes] = []
        self._opened = asyncio.Semaphore(0)
        self._are_open = asyncio.Event()

    async def run(self) -> GatewayFigures:
        """Return the figures. Raises: ClientBroken, EngineDied, ServerError."""
        options = self._options
        await self._warm_up()
        memory_idle_bytes = self._gateway.memory_bytes()
        async with AsyncExitStack() as stack:
            num_natives = options.native_readers if options.num_native else 0
            for number in range(options.clients + num_natives):
                is_native = number >= options.clients
                module = "native_process" if is_native else "sse_process"
                process = await stack.enter_async_context(ClientProcess(module))
                (self._natives if is_native else self._clients).append(process)
            await self._order()
            window = await self._read_all()
        await asyncio.sleep(_STEP_LOG_DELAY_S)
        return sum_up(
            MeasuredStreams(
                options=options,
                begin_s=window.begin_s,
                end_s=window.end_s,
                streams=self._streams,
                natives=self._native_streams,
                handover_times=read_step_logs(self._deployment.step_logs),
                gateway_cpu_s=window.gateway_cpu_s,
                native_cpu_s=window.native_cpu_s,
                memory_idle_bytes=memory_idle_bytes,
                memory_bytes=window.memory_bytes,
            )
        )

    async def _read_all(self) -> Window:
        """Collect all reports, and return what the window showed."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_all())
                for native in self._natives:
                    group.create_task(self._collect(native))
                return await self._window()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _warm_up(self) -> None:
        """Send a request through everything once. Raises: ClientBroken."""
        options = self._options
        seed = options.seeds[-1] + 1
        request = request_of(options, seed, num_tokens=2)
        stream = SseStream(-1, request, lambda *_: None)
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: stream, "127.0.0.1", self._gateway.port)
        try:
            async with asyncio.timeout(_WARM_UP_TIMEOUT_S):
                await stream.ended.wait()
        except TimeoutError:
            stream.fail("took too long")
        if (fault := stream.report().fault) is not None:
            raise ClientBroken(f"the first stream through the gateway: {fault}")

    async def _order(self) -> None:
        """Give every process its order."""
        options, deployment = self._options, self._deployment
        lasts_s = options.until_window_s + options.duration_s + options.drain_s
        # The native readers are connected before the streams begin.
        give_up_s = time.monotonic() + _READY_TIMEOUT_S + lasts_s
        for native in self._natives:
            await native.send(NativeOrder(
                url=deployment.url, pool=deployment.keys.pool, give_up_s=give_up_s))  # fmt: skip
            ready = await native.receive()
            assert isinstance(ready, NativeReady), "a reader spoke before it was ready"
        if options.idle:
            await self._pause(is_paused=True)
        start_s = time.monotonic() + _LEAD_S
        give_up_s = start_s + lasts_s
        for number, client in enumerate(self._clients):
            await client.send(SseOrder(
                options=options, port=self._gateway.port, first=number, step=len(self._clients),
                start_s=start_s, give_up_s=give_up_s))  # fmt: skip

    async def _follow_all(self) -> None:
        """Collect what the clients report; the native readers get each job as it is known."""
        async with asyncio.TaskGroup() as group:
            for client in self._clients:
                group.create_task(self._collect(client))
            for _ in self._clients:
                await self._opened.acquire()
            self._are_open.set()
            for native in self._natives:
                await native.send(NoMoreJobs())

    async def _collect(self, client: ClientProcess) -> None:
        """Take the reports of one process to their end."""
        while not isinstance(message := await client.receive(), Finished):
            if isinstance(message, StreamJob):
                if message.number < self._options.num_native:
                    await self._natives[message.number % len(self._natives)].send(message)
            elif isinstance(message, AllOpened):
                self._opened.release()
            elif isinstance(message, StreamTimes):
                is_native = client in self._natives
                (self._native_streams if is_native else self._streams).append(message)
        if client in self._clients:
            # A client that gave up has not said that all are open.
            self._opened.release()

    async def _window(self) -> Window:
        """Wait until all streams are open and have warmed up, and for as long as it is measured."""
        await self._are_open.wait()
        self._tell(f"{self._options.streams} streams are open")
        await asyncio.sleep(self._options.warm_up_s)
        begin_s, before = time.monotonic(), (self._gateway.cpu_s(), self._native_cpu_s())
        await asyncio.sleep(self._options.duration_s)
        end_s, after = time.monotonic(), (self._gateway.cpu_s(), self._native_cpu_s())
        memory_bytes = self._gateway.memory_bytes()
        self._deployment.check_workers()
        if self._options.idle:
            await self._pause(is_paused=False)
        self._tell(f"measured; waiting for the streams, {self._options.drain_s:.0f} s at most")
        return Window(begin_s, end_s, after[0] - before[0], after[1] - before[1], memory_bytes)

    def _native_cpu_s(self) -> float:
        return sum(native.cpu_s() for native in self._natives)

    async def _pause(self, *, is_paused: bool) -> None:
        pool = self._deployment.keys.pool
        async with await AsyncClient.connect(self._deployment.url, pool) as client:
            await (client.pause() if is_paused else client.resume())
