"""Gateways for tests: in this process or in one of their own, and what their answers say."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from patience import PATIENCE_S
from workers.forked_command import ForkedCommand, forked_command, variables_of

from tokenbus.producer.contract import deployment_keys
from tokenbus.producer.gateway.app import create_app
from tokenbus.producer.gateway.command import GatewayServer, run_gateway
from tokenbus.producer.gateway.settings import GatewaySettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from redis.asyncio import Redis

    from tokenbus.producer.gateway.gateway import Gateway

# Where several tests share a server, the keys of one are no reason to ask the others for one.
_QUIET = {"gateway_port": 0, "gateway_auth": "off", "log_level": "error"}


@dataclass(slots=True)
class Frame:
    """One frame of a stream, or a comment; `data` is as it came."""

    data: str = ""
    id: str | None = None
    event: str = ""
    comment: str = ""

    @property
    def json(self) -> Any:
        """Return the data, decoded."""
        return json.loads(self.data)


@dataclass(slots=True)
class Told:
    """An answer: its status, headers, and body or frames."""

    status: int
    headers: Mapping[str, str]
    text: str = ""
    frames: list[Frame] = field(default_factory=list)

    @property
    def json(self) -> Any:
        """Return the body, decoded."""
        return json.loads(self.text)

    @property
    def error(self) -> Any:
        """Return the error of the body."""
        return self.json["error"]

    @property
    def job_id(self) -> str:
        """Return the id of the job that answers, of the first where there are several."""
        assert self.status == 200, self.text
        return self.headers["X-Tokenbus-Job-Id"]

    @property
    def data_frames(self) -> list[Frame]:
        """Return the frames with data, `[DONE]` among them."""
        return [frame for frame in self.frames if frame.data]

    @property
    def chunks(self) -> list[Any]:
        """Return the data of all frames but `[DONE]`, decoded."""
        return [frame.json for frame in self.data_frames if frame.data != "[DONE]"]


async def frames_of(response: aiohttp.ClientResponse) -> AsyncIterator[Frame]:
    """Yield the frames of a stream as they come."""
    lines: list[str] = []
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if line.startswith(":"):
            yield _frame([line])
            continue
        if line:
            lines.append(line)
            continue
        if lines:
            yield _frame(lines)
        lines = []


def _frame(lines: list[str]) -> Frame:
    frame = Frame()
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "":
            frame.comment = value
        elif name == "data":
            frame.data = value
        elif name == "id":
            frame.id = value
        elif name == "event":
            frame.event = value
    return frame


@dataclass(slots=True)
class Door:
    """A gateway that listens; `gateway` are its parts where it runs in this process."""

    url: str
    http: aiohttp.ClientSession
    gateway: Gateway | None = None
    process: ForkedCommand | None = None
    server: GatewayServer | None = None

    async def ask(
        self, method: str, path: str, body: Any = None, key: str = "", **headers: str
    ) -> Told:
        """Make a request and read its answer to the end."""
        async with self.open(method, path, body, key, **headers) as response:
            if response.content_type == "text/event-stream":
                frames = [frame async for frame in frames_of(response)]
                return Told(response.status, response.headers, frames=frames)
            return Told(response.status, response.headers, await response.text())

    def open(self, method: str, path: str, body: Any = None, key: str = "", **headers: str) -> Any:
        """Make a request whose answer is read by the caller; a body is JSON, or bytes as given."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            named["Authorization"] = f"Bearer {key}"
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if raw is not None:
            named.setdefault("Content-Type", "application/json")
        return self.http.request(method, self.url + path, data=raw, headers=named)

    async def post(self, path: str, body: Any, key: str = "", **headers: str) -> Told:
        """Send a body and read the answer to the end."""
        return await self.ask("POST", path, body, key, **headers)

    async def get(self, path: str, key: str = "", **headers: str) -> Told:
        """Read what lies at a path."""
        return await self.ask("GET", path, None, key, **headers)


def _session() -> aiohttp.ClientSession:
    # A frame is one line, and may tell again all that a body has said.
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    return aiohttp.ClientSession(timeout=timeout, read_bufsize=4 * 2**20)


@asynccontextmanager
async def door(redis_url: str, pool: str, **settings: Any) -> AsyncIterator[Door]:
    """Run a gateway beside the test."""
    quiet = _QUIET | {"gateway_auth": "auto" if settings.get("gateway_api_keys") else "off"}
    made = GatewaySettings.load(redis_url=redis_url, pool=pool, **(quiet | settings))
    app, listening = create_app(made), asyncio.get_running_loop().create_future()
    server = GatewayServer(app, made, listening.set_result)
    serving = asyncio.create_task(server._serve())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait({listening, serving}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        url = f"http://127.0.0.1:{listening.result()}"
        async with _session() as http:
            yield Door(url, http, app.state.gateway, server=server)
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def door_process(redis_url: str, pool: str, **settings: Any) -> AsyncIterator[Door]:
    """Run a gateway in a process of its own; it is killed at the end."""
    given = {"redis_url": redis_url, "pool": pool} | _QUIET | settings
    with forked_command(main=_serve, environment=variables_of(given)) as process:
        async with asyncio.timeout(PATIENCE_S):
            port = int(await asyncio.to_thread(process.stdout.readline))
        async with _session() as http:
            yield Door(f"http://127.0.0.1:{port}", http, process=process)


def _serve(_: tuple[str, ...]) -> int:
    """Be a gateway that prints its port."""
    return run_gateway(GatewaySettings.load(), lambda port: print(port, flush=True))


async def forget_deployment(redis: Redis) -> None:
    """Delete what gateways share on a server, API keys among it."""
    async for name in redis.scan_iter(f"{deployment_keys.PREFIX}*", count=1000):
        await redis.delete(name)
