"""The processes of a run beside server and workers: the gateway, and those who read."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Self

import psutil

from tokenbus.producer.server.secret_env import without_secrets
from tokenbus.worker.bench.gateway.messages import FROM_CLIENT, TO_CLIENT
from tokenbus.worker.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from tokenbus.worker.bench.gateway.messages import FromClient, ToClient

_ROOM = "tokenbus.worker.bench.gateway"
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 15.0
# One frame carries the times of a stream.
_PIPE_BYTES = 1 << 22


class ClientBroken(WorkerError):
    """A process of the bench failed or ended before its work did."""


async def _start(
    module: str, *arguments: str, env: Mapping[str, str] | None = None
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        f"{_ROOM}.{module}",
        str(os.getpid()),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=without_secrets(os.environ) | dict(env or {}),
        limit=_PIPE_BYTES,
        start_new_session=True,
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process that may have ended."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


class ClientProcess:
    """One process that reads; as a context manager it starts and ends it."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._process: asyncio.subprocess.Process | None = None

    @property
    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "the process has not been started"
        return self._process

    async def __aenter__(self) -> Self:
        """Start it."""
        self._process = await _start(self._module)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        await _end(self._running)

    async def send(self, message: ToClient) -> None:
        """Send it a message."""
        assert self._running.stdin is not None
        self._running.stdin.write(TO_CLIENT.encode(message))
        await self._running.stdin.drain()

    async def receive(self) -> FromClient:
        """Read its next message. Raises: ClientBroken."""
        assert self._running.stdout is not None
        try:
            return await FROM_CLIENT.read(self._running.stdout)
        except asyncio.IncompleteReadError:
            raise ClientBroken("a client process ended before its work did") from None

    def cpu_s(self) -> float:
        """Return the CPU time that it has used, of user and system."""
        times = psutil.Process(self._running.pid).cpu_times()
        return times.user + times.system


class GatewayProcess:
    """The gateway of a run; as a context manager it starts and ends it."""

    def __init__(self, url: str, pool: str, core: int | None = None) -> None:
        """Serve `pool` of the server at `url`, on a core of its own where one is given."""
        self._url = url
        self._pool = pool
        self._core = core
        self._process: asyncio.subprocess.Process | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        """Start it and wait until it listens. Raises: ClientBroken."""
        core = [] if self._core is None else [str(self._core)]
        env = {"TOKENBUS_POOL": self._pool, "TOKENBUS_GATEWAY_AUTH": "off"}
        self._process = process = await _start("gateway_process", *core, env=env)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{self._url}\n".encode())
        process.stdin.close()
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                line = await process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            await _end(process)
            raise ClientBroken("the gateway did not start")
        self.port = int(line)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        assert self._process is not None
        await _end(self._process)

    def cpu_s(self) -> float:
        """Return the CPU time that it has used, of user and system."""
        times = self._shown().cpu_times()
        return times.user + times.system

    def memory_bytes(self) -> int:
        """Return the memory that it has resident."""
        resident: int = self._shown().memory_info().rss
        return resident

    def _shown(self) -> psutil.Process:
        assert self._process is not None
        return psutil.Process(self._process.pid)
