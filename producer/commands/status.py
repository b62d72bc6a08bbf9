"""`tokenbus status`: what waits in a pool and which workers live; the health check of a worker."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenbus.producer.contract.keys import Keys
from tokenbus.producer.server.connection import open_server
from tokenbus.producer.server.url import ServerUrl
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    from redis.asyncio import Redis

# A health check is asked every few seconds and must not pile up behind a server that is away.
RETRY_FOR_S = 2.0


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A pool at one moment; `workers` are the names of those whose lease runs."""

    waiting_jobs: int
    waiting_tokens: int
    held_jobs: int
    workers: tuple[str, ...]


async def read_status(redis: Redis, keys: Keys) -> PoolStatus:
    """Read the load and the leases of a pool; costs one look per worker."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hmget(keys.of("load"), ["jobs", "tokens"])
        pipe.smembers(keys.of("workers"))
        (jobs, tokens), members = await pipe.execute()
    names = sorted(name.decode() for name in members)
    async with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.exists(keys.of("alive", name))
            pipe.hlen(keys.of("held", name))
        replies = await pipe.execute()
    return PoolStatus(
        waiting_jobs=int(jobs or 0),
        waiting_tokens=int(tokens or 0),
        held_jobs=sum(replies[1::2]),
        workers=tuple(name for name, lives in zip(names, replies[::2], strict=True) if lives),
    )


def run_status(url: str | None, pool: str, *, here: bool) -> int:
    """Print the status; return 0 if a worker lives, on this host where `here` asks for that."""
    url = url or ClientSettings().redis_url
    ServerUrl.parse(url).refuse_private("status")
    status = asyncio.run(_fetch(url, pool))
    print(f"{status.waiting_jobs} jobs wait ({status.waiting_tokens} tokens)")
    print(f"{status.held_jobs} jobs at {len(status.workers)} workers")
    for name in status.workers:
        print(f"  {name}")
    prefix = f"{socket.gethostname()}-" if here else ""
    return 0 if any(name.startswith(prefix) for name in status.workers) else 1


async def _fetch(url: str, pool: str) -> PoolStatus:
    server = await open_server(url, retry_for_s=RETRY_FOR_S)
    try:
        return await read_status(server.redis, Keys(pool))
    finally:
        await server.close()
