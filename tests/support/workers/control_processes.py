"""A receiver of webhooks, and control services as an operator starts them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web
from patience import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

_COMMAND = (
    "import sys; from tokenbus.producer.commands.cli import main; sys.exit(main(sys.argv[1:]))"
)
KEY = "whsec_" + base64.b64encode(b"thirty-two bytes of a signing key").decode()


@dataclass(frozen=True, slots=True)
class Call:
    """One POST that arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> Any:
        """Return the body, decoded."""
        return json.loads(self.body)


@dataclass(slots=True)
class Receiver:
    """A web server that keeps what it gets and answers as it is told."""

    answer: Callable[[Call], Awaitable[web.Response]]
    calls: list[Call] = field(default_factory=list)
    port: int = 0
    _called: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, path: str = "/done", host: str = "127.0.0.1") -> str:
        """Return its address."""
        return f"http://{host}:{self.port}{path}"

    async def take(self, request: web.Request) -> web.Response:
        """Keep a call and answer it."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        call = Call(request.path, headers, await request.read())
        self.calls.append(call)
        self._called.set()
        return await self.answer(call)

    async def until_called(self, num_calls: int) -> None:
        """Wait until it was called so many times in all."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.calls) < num_calls:
                self._called.clear()
                await self._called.wait()


@asynccontextmanager
async def receiver(
    answer: Callable[[Call], Awaitable[web.Response]] | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Receiver]:
    """Run a receiver beside the test; it says 204 unless told else."""

    async def well(_: Call) -> web.Response:
        return web.Response(status=204)

    running = Receiver(answer or well)
    app = web.Application(client_max_size=2**24)
    app.router.add_route("*", "/{tail:.*}", running.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, host, 0)
    await site.start()
    [(_, running.port, *_)] = [s.getsockname() for s in site._server.sockets]  # type: ignore[union-attr]  # a started site has a server
    try:
        yield running
    finally:
        await runner.cleanup()


@dataclass(slots=True)
class ControlProcess:
    """A control process, to be killed; `lines` are its log so far."""

    process: asyncio.subprocess.Process
    lines: list[dict[str, Any]] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def kill(self) -> None:
        """Kill it as the kernel would."""
        self.process.send_signal(signal.SIGKILL)

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of an event."""
        return [line for line in self.lines if line.get("event") == event]

    async def until_logged(self, event: str, count: int = 1) -> None:
        """Wait until an event was logged so many times."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.logged(event)) < count:
                self._news.clear()
                await self._news.wait()

    async def read(self) -> None:
        """Read the log to its end."""
        assert self.process.stderr is not None
        async for raw in self.process.stderr:
            try:
                self.lines.append(json.loads(raw))
            except ValueError:
                self.lines.append({"event": "raw", "text": raw.decode(errors="replace")})
            self._news.set()


@asynccontextmanager
async def control_process(
    pool: str, redis_url: str, *args: str, **settings: Any
) -> AsyncIterator[ControlProcess]:
    """Run `tokenbus control` with these arguments and settings; it is killed at the end."""
    given = {"log_level": "debug", "log_format": "json"} | settings
    env = {f"TOKENBUS_{name.upper()}": str(value) for name, value in given.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", _COMMAND, "control", *args, "--redis", redis_url,
        "--pool", pool, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    running = ControlProcess(process)
    reading = asyncio.create_task(running.read())
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading
