"""The way to the span process, in a worker whose settings name a collector of spans."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, NoReturn

from tokenbus.worker.logs import get_logger, relay
from tokenbus.worker.process.child import kill, spawn
from tokenbus.worker.process.child_output import ChildOutput
from tokenbus.worker.process.frame_receiver import FrameReceiver
from tokenbus.worker.tracing.span_process import FLUSH_S
from tokenbus.worker.tracing.traced_job import MESSAGES, Left, SpanDestination

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.worker.tracing.traced_job import TracedJob

# Jobs that leave within it go in one message; a collector gets spans every few seconds.
GATHER_S = 0.1
_RESTART_S = 1.0
# 20,000 jobs: a process that is so far behind is told of no more until it has caught up.
_MAX_UNREAD_BYTES = 4 << 20
_MODULE = "tokenbus.worker.tracing.span_process"


class SpanLink:
    """Tells a span process of jobs. While there is none, or it is far behind, jobs go untold."""

    def __init__(self, destination: SpanDestination) -> None:
        self._destination = destination
        self._waiting: list[TracedJob] = []
        self._transport: asyncio.Transport | None = None
        self.pid: int | None = None

    def tell(self, jobs: list[TracedJob]) -> None:
        """Tell of jobs, together with those that leave soon after them."""
        if not self._waiting:
            asyncio.get_running_loop().call_later(GATHER_S, self._send)
        self._waiting += jobs

    async def run(self) -> NoReturn:
        """Keep a span process, and start another where it ends; cancelled, let it send the rest."""
        log = get_logger()
        while True:
            try:
                async with self._process() as (process, ended):
                    await ended.wait()
                log.warning("traces.interrupted", exit_status=process.returncode)
            except OSError as error:
                log.warning("traces.interrupted", reason=str(error))
            await asyncio.sleep(_RESTART_S)

    @contextlib.asynccontextmanager
    async def _process(self) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.Event]]:
        """Run a process within the context; the event says that it has ended by itself."""
        ended = asyncio.Event()
        with contextlib.closing(ChildOutput(lambda line: relay(line, "traces.said"))) as output:
            try:
                process, transport = await spawn(
                    _MODULE, lambda: FrameReceiver(lambda _: None, ended.set), output
                )
            finally:
                output.began()
            transport.write(MESSAGES.encode(self._destination))
            self._transport, self.pid = transport, process.pid
            try:
                yield process, ended
            finally:
                self._send()
                self._transport = self.pid = None
                # What it has not read yet still goes to it.
                transport.close()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(2 * FLUSH_S):
                        await process.wait()
                kill(process)

    def _send(self) -> None:
        jobs, self._waiting = self._waiting, []
        transport = self._transport
        if jobs and transport and transport.get_write_buffer_size() < _MAX_UNREAD_BYTES:
            transport.write(MESSAGES.encode(Left(jobs)))
