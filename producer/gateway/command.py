"""`tokenbus gateway`: the door of a pool, in the foreground until it is told to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import uvicorn

from tokenbus.producer.gateway.app import create_app
from tokenbus.producer.server.url import ServerUrl

if TYPE_CHECKING:
    from tokenbus.producer.gateway.settings import GatewaySettings


def run_gateway(settings: GatewaySettings) -> int:
    """Serve until told to stop; return 0 after an orderly end, 1 if it could not start.

    Raises: UrlInvalid.
    """
    ServerUrl.parse(settings.redis_url).refuse_private("gateway")
    config = uvicorn.Config(
        create_app(settings),
        host=settings.gateway_host,
        port=settings.gateway_port,
        log_level=settings.log_level,
        access_log=False,
    )
    server = uvicorn.Server(config)
    server.run()
    return 0 if server.started else 1
