"""A receiver of webhooks, and control services as an operator starts them."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web
from patience import PATIENCE_S
from workers.forked_command import ForkedCommand, forked_command, reader_of, variables_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

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

    process: ForkedCommand
    lines: list[dict[str, Any]] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def kill(self) -> None:
        """Kill it as the kernel would."""
        self.process.kill()

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
        async for raw in await reader_of(self.process.stderr):
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
    command = ("control", *args, "--redis", redis_url, "--pool", pool)
    with forked_command(*command, environment=variables_of(given)) as process:
        running = ControlProcess(process)
        reading = asyncio.create_task(running.read())
        try:
            yield running
        finally:
            process.kill()
            await reading
