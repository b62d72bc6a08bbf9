"""The load of a pool and its living workers, at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tokenbus.producer.contract.keys import Keys


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
        pipe.sunion([keys.of("workers"), keys.of("workers1")])
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
