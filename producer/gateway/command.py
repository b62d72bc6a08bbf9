"""`tokenbus gateway`: the door of a pool, in the foreground until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
from typing import TYPE_CHECKING

import uvicorn

from tokenbus.producer import gc
from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import ClientSettingsInvalid
from tokenbus.producer.gateway.app import create_app
from tokenbus.producer.gateway.jobs.chunk_writer import ServerSends
from tokenbus.producer.gateway.waiting_protocol import WaitingProtocol
from tokenbus.producer.listening import listening_problem
from tokenbus.producer.open_files import raise_file_limit
from tokenbus.producer.scripts.rights import UserRole, check_rights
from tokenbus.producer.server.url import ServerUrl
from tokenbus.producer.settings import ClientSettings
from tokenbus.producer.terminal import say
from tokenbus.producer.wait_notice import waiting_told

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from fastapi import FastAPI

    from tokenbus.producer.gateway.gateway import Gateway
    from tokenbus.producer.gateway.settings import GatewaySettings

# What ends after the streams were told to resume elsewhere.
_LAST_S = 2.0
# Longer than balancers and clients keep a connection that is idle (60 s and less): who closes it is
# the one that would send on it, so that no request meets a connection that is just being closed.
_IDLE_S = 75


class GatewayServer(uvicorn.Server):
    """A server that lets its streams end, or tells them to resume elsewhere, before it closes.

    `on_started` is called with the port once it listens.
    """

    def __init__(
        self,
        app: FastAPI,
        settings: GatewaySettings,
        on_started: Callable[[int], None] | None = None,
    ) -> None:
        config = uvicorn.Config(
            ServerSends(app),
            host=settings.gateway_host,
            port=settings.gateway_port,
            log_level=settings.log_level,
            access_log=False,
            server_header=False,
            # The guard of the door answers what is too large in its own words.
            h11_max_incomplete_event_size=2 * settings.gateway_max_header_bytes,
            http=WaitingProtocol,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=math.ceil(settings.gateway_drain_s + _LAST_S),
        )
        super().__init__(config)
        self._app = app
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if self.started and self._on_started is not None:
            self._on_started(self.servers[0].sockets[0].getsockname()[1])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, drain, and close."""
        gateway: Gateway = self._app.state.gateway
        draining = asyncio.create_task(gateway.streams.drain())
        await super().shutdown(sockets)
        draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)


def run_gateway(settings: GatewaySettings, on_started: Callable[[int], None] | None = None) -> int:
    """Serve until told to stop; return 0 after an orderly end, 1 if it could not start.

    Raises: UrlInvalid; ClientSettingsInvalid for a port that cannot be had; ServerError where there
        is no server that will do.
    """
    ServerUrl.parse(settings.redis_url).refuse_private("gateway")
    problem = listening_problem(settings.gateway_host, settings.gateway_port)
    if problem is not None:
        raise ClientSettingsInvalid(f"gateway_port: {problem}")
    asyncio.run(_look(settings))
    # The server of HTTP raises the signal again once it has ended in order.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Each open stream is one, and many systems begin with 1,024.
    raise_file_limit()

    def started(port: int) -> None:
        gc.freeze_startup_objects()
        if on_started is not None:
            on_started(port)

    server = GatewayServer(create_app(settings), settings, started)
    # So it does Ctrl-C's.
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    return 0 if server.started else 1


async def _look(settings: GatewaySettings) -> None:
    """Connect once, so that what is wrong with the server is told in a sentence."""
    shown, settings_of_client = ServerUrl.parse(settings.redis_url), ClientSettings()
    told = f"tokenbus: no server at {shown} yet, trying for {settings_of_client.retry_for_s:g} s"
    with waiting_told(lambda: say(told)):
        client = await AsyncClient.connect(settings.redis_url, settings.pool, settings_of_client)
    async with client:
        scripts = client.scripts
        await check_rights(scripts.redis, scripts.keys, UserRole.GATEWAY, shown_url=str(shown))
