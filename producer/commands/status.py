"""`tokenbus status`: what waits in a pool and which workers live; the health check of a worker."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from tokenbus.producer.client.pool_status import read_status
from tokenbus.producer.contract.keys import Keys
from tokenbus.producer.server.connection import open_server, retrying
from tokenbus.producer.server.url import ServerUrl
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    from tokenbus.producer.client.pool_status import PoolStatus

# A health check is asked every few seconds and must not pile up behind a server that is away.
RETRY_FOR_S = 2.0


def run_status(url: str | None, pool: str, *, here: bool) -> int:
    """Print the status; return 0 if a worker can run jobs, on this host where `here` asks for that.

    One whose engine is down is alive and not ready: it starts another by itself.
    """
    url = url or ClientSettings().redis_url
    ServerUrl.parse(url).refuse_private("status")
    status = asyncio.run(_fetch(url, pool))
    print(f"{status.waiting_jobs} jobs wait ({status.waiting_tokens} tokens)")
    print(f"{status.held_jobs} jobs at {len(status.workers)} workers")
    for name in status.workers:
        outage = status.outages.get(name)
        print(f"  {name}" if outage is None else f"  {name}: {outage}")
    prefix = f"{socket.gethostname()}-" if here else ""
    return 0 if any(name.startswith(prefix) for name in status.ready) else 1


async def _fetch(url: str, pool: str) -> PoolStatus:
    server = await open_server(url, retry_for_s=RETRY_FOR_S)
    try:
        return await retrying(
            lambda: read_status(server.redis, Keys(pool)), server.url, RETRY_FOR_S
        )
    finally:
        await server.close()
