"""The reader processes as the bench sees them: started together, followed to the end."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from tokenbus.worker.bench.load.messages import (
    FROM_READER,
    TO_READER,
    AllRead,
    Done,
    Go,
    LoadOrder,
    LoadProgress,
    ReaderFailed,
    ReaderReady,
    Verify,
)
from tokenbus.worker.errors import WorkerError
from tokenbus.worker.process.env import compute_env

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from tokenbus.worker.bench.load.messages import FromReader, JobReport, ToReader
    from tokenbus.worker.bench.options import BenchOptions

_READY_TIMEOUT_S = 120.0
# Between Go and the first submit: longer than it takes to tell every reader.
_LEAD_S = 0.25
# What a reader gets after its own limit to tell that it is there, and for the verification of so
# many jobs.
_GRACE_S = 30.0
_VERIFIED_PER_S = 200.0
# One frame carries the reports of a quarter of a second.
_PIPE_BYTES = 1 << 20


class ReaderBroken(WorkerError):
    """A reader process failed or fell silent."""


@dataclass(slots=True)
class ReaderLink:
    """One reader process and what it has reported."""

    process: asyncio.subprocess.Process
    latest: LoadProgress = field(default_factory=LoadProgress)
    cpu_s: float = 0.0
    done: Done = field(default_factory=lambda: Done(0, 0))

    async def receive(self) -> FromReader:
        """Read its next message. Raises: ReaderBroken."""
        assert self.process.stdout is not None
        try:
            message = await FROM_READER.read(self.process.stdout)
        except asyncio.IncompleteReadError:
            status = await self.process.wait()
            how = signal.Signals(-status).name if status < 0 else f"status {status}"
            raise ReaderBroken(f"a reader process ended with {how} before its work did") from None
        if isinstance(message, ReaderFailed):
            raise ReaderBroken(message.message)
        return message

    async def send(self, message: ToReader) -> None:
        """Send it a message."""
        assert self.process.stdin is not None
        self.process.stdin.write(TO_READER.encode(message))
        await self.process.stdin.drain()


class Readers:
    """All reader processes of one run; as a context manager it starts and ends them."""

    def __init__(self, options: BenchOptions, url: str, pool: str) -> None:
        self._options = options
        self._url = url
        self._pool = pool
        self._readers: list[ReaderLink] = []
        self.reports: list[JobReport] = []
        self.start_s = 0.0

    @property
    def num_submitted(self) -> int:
        """Jobs begun."""
        return sum(reader.latest.num_submitted for reader in self._readers)

    @property
    def num_open(self) -> int:
        """Jobs under way."""
        return sum(reader.latest.num_open for reader in self._readers)

    @property
    def num_tokens(self) -> int:
        """Tokens received."""
        return sum(reader.latest.num_tokens for reader in self._readers)

    @property
    def cpu_s(self) -> float:
        """CPU time of all readers between their start and the last end that they read."""
        return sum(reader.cpu_s for reader in self._readers)

    @property
    def num_plain(self) -> tuple[int, int]:
        """Jobs whose channels were read by a plain SUBSCRIBE too, and the events on them."""
        done = [reader.done for reader in self._readers]
        return sum(d.num_plain_jobs for d in done), sum(d.num_plain_events for d in done)

    async def __aenter__(self) -> Self:
        """Start the processes and wait until each has its plan."""
        try:
            for idx in range(self._options.readers):
                await self._start(idx)
            async with asyncio.timeout(_READY_TIMEOUT_S):
                for reader in self._readers:
                    message = await reader.receive()
                    assert isinstance(message, ReaderReady), "a reader spoke before it was ready"
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes."""
        await self._end()

    async def run(self, span_s: float, on_read: Callable[[], Awaitable[None]]) -> None:
        """Let jobs arrive for `span_s`, follow all of them to their ends, and let them be checked.

        `on_read` is awaited between the last end and the checks that are left for then.
        Raises: ReaderBroken.
        """
        self.start_s = time.monotonic() + _LEAD_S
        stop_s = self.start_s + span_s
        go = Go(self.start_s, stop_s, stop_s + self._options.drain_s)
        await self._follow(go, AllRead, go.give_up_s + _GRACE_S - time.monotonic())
        await on_read()
        await self._follow(Verify(), Done, _GRACE_S + self.num_submitted / _VERIFIED_PER_S)
        if len(self.reports) != self.num_submitted:
            message = f"{len(self.reports)} of {self.num_submitted} jobs were reported"
            raise ReaderBroken(message)

    async def _start(self, idx: int) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "tokenbus.worker.bench.load.reader_process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_PIPE_BYTES,
            env=compute_env(),
            start_new_session=True,
        )
        reader = ReaderLink(process)
        self._readers.append(reader)
        order = LoadOrder(
            options=self._options,
            url=self._url,
            pool=self._pool,
            reader_idx=idx,
            num_readers=self._options.readers,
        )
        await reader.send(order)

    async def _follow(self, order: ToReader, last: type[AllRead | Done], limit_s: float) -> None:
        """Give every reader an order and take what it says, up to the message that ends it."""
        try:
            async with asyncio.timeout(limit_s), asyncio.TaskGroup() as tasks:
                for reader in self._readers:
                    tasks.create_task(self._listen(reader, order, last))
        except TimeoutError:
            raise ReaderBroken(f"the readers did not end within {limit_s:.0f} s") from None
        except ExceptionGroup as group:
            raise group.exceptions[0] from group

    async def _listen(
        self, reader: ReaderLink, order: ToReader, last: type[AllRead | Done]
    ) -> None:
        await reader.send(order)
        while True:
            message = await reader.receive()
            if isinstance(message, LoadProgress):
                reader.latest = message
                self.reports.extend(message.ended)
                continue
            assert isinstance(message, last), "a reader speaks out of turn"
            if isinstance(message, AllRead):
                reader.cpu_s = message.cpu_s
            elif isinstance(message, Done):
                reader.done = message
            return

    async def _end(self) -> None:
        for reader in self._readers:
            if reader.process.returncode is None:
                if reader.process.stdin is not None:
                    reader.process.stdin.close()
                try:
                    async with asyncio.timeout(5):
                        await reader.process.wait()
                except TimeoutError:
                    reader.process.kill()
                    await reader.process.wait()
