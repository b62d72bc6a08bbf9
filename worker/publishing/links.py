"""Links to publishers, inside the worker process or in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from tokenbus.worker.errors import PublisherDied
from tokenbus.worker.logs import relay
from tokenbus.worker.messages.publishing import (
    ORDERS,
    PUBLISHER_REPORTS,
    Progress,
    Ready,
    TakeOver,
)
from tokenbus.worker.process.child import kill, spawn
from tokenbus.worker.process.child_output import ChildOutput
from tokenbus.worker.process.frame_receiver import FrameReceiver
from tokenbus.worker.process.frame_writer import FrameWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.worker.messages.engine import StepRecord
    from tokenbus.worker.messages.publishing import Configure, Order, PublisherReport
    from tokenbus.worker.publishing.publisher import Publisher

_START_TIMEOUT_S = 60.0
_REAP_TIMEOUT_S = 5.0
# A line of a log may hold a trace.
_MAX_LOG_LINE_BYTES = 1 << 17
_MODULE = "tokenbus.worker.publishing.publisher_process"


class LocalLink:
    """A publisher of the worker process."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self.num_jobs = 0

    def send(self, order: Order) -> None:
        """Let the publisher obey."""
        self._publisher.obey(order)

    def send_step(self, step: StepRecord) -> None:
        """Let the publisher take the step."""
        self._publisher.obey(step)

    def busy_share(self) -> float:
        """Return 0: the publisher's time is the worker's."""
        return 0.0

    async def start(self) -> None:
        """Do nothing: the publisher is ready."""

    async def run(self) -> None:
        """Run the publisher's log writers for ever."""
        async with asyncio.TaskGroup() as tasks:
            self._publisher.run_in(tasks)

    async def stop(self) -> None:
        """Close the publisher's connections."""
        await self._publisher.close()


class ProcessLink:
    """A publisher in a process of its own; it dies with the worker, and the worker with it."""

    def __init__(self, configure: Configure, on_report: Callable[[PublisherReport], None]) -> None:
        self._configure = configure
        self._on_report = on_report
        self._process: asyncio.subprocess.Process | None = None
        self._writer: FrameWriter | None = None
        self._output: ChildOutput | None = None
        self._ready = asyncio.Event()
        self._cpu_s = 0.0
        self._asked_at = time.monotonic()
        self.died = asyncio.Event()
        self.num_jobs = 0

    @property
    def pid(self) -> int | None:
        """Process id, None before the start."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Spawn the process and wait until it takes orders.

        Raises: PublisherDied.
        """
        self._output = ChildOutput(lambda line: relay(line, "publisher.said"), _MAX_LOG_LINE_BYTES)
        try:
            self._process, transport = await spawn(
                _MODULE, lambda: FrameReceiver(self._receive, self.died.set), self._output
            )
        finally:
            self._output.began()
        self._writer = FrameWriter(transport)
        self.send(self._configure)
        waits = [asyncio.ensure_future(self._ready.wait()), asyncio.ensure_future(self.died.wait())]
        try:
            await asyncio.wait(waits, timeout=_START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not self._ready.is_set() or self.died.is_set():
            await self.stop()
            raise PublisherDied("a publisher process did not start; the log has what it said")

    def send(self, order: Order) -> None:
        """Send an order; what is on its way is bounded by the engine's credit."""
        if self._writer is None:
            return
        if isinstance(order, TakeOver):
            self._writer.send_soon(ORDERS.encode(order))
        else:
            self._writer.send(ORDERS.encode(order))

    def send_step(self, step: StepRecord) -> None:
        """Send the frame of a step."""
        if self._writer is not None:
            self._writer.send(step.frame)

    def busy_share(self) -> float:
        """Return the share of a core that the process used since the last call."""
        now = time.monotonic()
        share = self._cpu_s / max(now - self._asked_at, 1e-3)
        self._cpu_s, self._asked_at = 0.0, now
        return share

    async def run(self) -> None:
        """Watch the process for ever. Raises: PublisherDied."""
        await self.died.wait()
        raise PublisherDied(f"publisher process {self.pid} has ended")

    async def stop(self) -> None:
        """Kill the process and wait for it."""
        process = self._process
        if process is None:
            return
        kill(process)
        if self._writer is not None:
            self._writer.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REAP_TIMEOUT_S):
                await process.wait()
        if self._output is not None:
            self._output.close()

    def _receive(self, body: bytes) -> None:
        report = PUBLISHER_REPORTS.decode(body)
        if isinstance(report, Ready):
            self._ready.set()
            return
        if isinstance(report, Progress):
            self._cpu_s += report.cpu_s
        self._on_report(report)
