"""The metrics server: a collector in the Prometheus text format, in a thread of its own."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server

from tokenbus.worker.errors import SettingsInvalid
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from prometheus_client.registry import Collector


@asynccontextmanager
async def metrics_served(collector: Collector, host: str, port: int) -> AsyncIterator[None]:
    """Answer scrapes meanwhile.

    Raises: SettingsInvalid if the port cannot be had.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise SettingsInvalid(f"metrics_port: {host}:{port}: {error}") from None
    get_logger().info("metrics.served", host=host, port=port)
    try:
        yield
    finally:
        # Its shutdown waits for the thread's next look at its flag, half a second at most.
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        thread.join()
