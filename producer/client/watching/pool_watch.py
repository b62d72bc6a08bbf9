"""One pool, watched: its figures, and beside them what a person on call has to know.

A look costs the server a read per worker, tenant and job that ended since the look before, and
nothing that grows with the number of waiting jobs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from tokenbus.producer.client.pool_figures import read_figures
from tokenbus.producer.client.watching.ended_jobs import EndedFigures, EndedJobs
from tokenbus.producer.server.cluster import ClusterRedis

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

    from tokenbus.producer.client.pool_figures import PoolFigures
    from tokenbus.producer.contract.keys import Keys

# The server's memory is asked for no more often than this.
_MEMORY_S = 5.0
# For so long a worker that vanished is told of.
TOLD_S = 600.0


@dataclass(frozen=True, slots=True)
class ServerMemory:
    """What a server has of its memory; `max_bytes` is 0 where nothing bounds it.

    `unread_bytes` is what waited in it for the client that read most slowly in the last seconds.
    """

    used_bytes: int = 0
    max_bytes: int = 0
    unread_bytes: int = 0

    @property
    def share(self) -> float:
        """Return how much of it is used, 0 where nothing bounds it."""
        return self.used_bytes / self.max_bytes if self.max_bytes else 0.0


@dataclass(frozen=True, slots=True)
class PoolSight:
    """A pool at one moment.

    drained_ms: since when workers take nothing because an operator said so, by the server's time.
    lost: workers that vanished in the last minutes, with since when it is known, in ms.
    left: jobs that workers without a lease still hold, by worker; a reaper of any other brings them
        back within seconds.
    num_letters: dead letters.
    num_suspects: jobs that wait to run with few others, because an engine has died with them.
    has_ended: false where the server's user may not read which jobs ended.
    """

    figures: PoolFigures
    ended: EndedFigures
    drained_ms: Mapping[str, int] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)
    left: Mapping[str, int] = field(default_factory=dict)
    num_letters: int = 0
    num_suspects: int = 0
    memory: ServerMemory = field(default_factory=ServerMemory)
    has_ended: bool = True


class PoolWatch:
    """Looks at one pool, as often as it is asked to."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        # Untyped: redis-py states some of its types wrongly.
        self._redis: Any = redis
        self._keys = keys
        self._memory = ServerMemory()
        self._memory_at = float("-inf")
        self.ended = EndedJobs(redis, keys)

    async def look(self) -> PoolSight:
        """Return the pool as it is now. Raises: what a call on the server raises."""
        figures = await read_figures(self._redis, self._keys)
        await self.ended.read()
        await self._look_at_memory()
        at_ms = figures.at_ms
        members = await self._redis.smembers(self._keys.of("workers"))
        living = set(figures.status.workers)
        missing = sorted({name.decode() for name in members} - living)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.xlen(self._keys.of("dead"))
            pipe.xlen(self._keys.of("suspects"))
            pipe.zrange(self._keys.of("lost"), 0, -1, withscores=True)
            for name in figures.status.workers:
                pipe.hget(self._keys.of("worker", name), "drained")
            for name in missing:
                pipe.hlen(self._keys.of("held", name))
            letters, suspects, lost, *replies = await pipe.execute()
        drained = zip(figures.status.workers, replies, strict=False)
        held = zip(missing, replies[len(figures.status.workers) :], strict=True)
        return PoolSight(
            figures,
            self.ended.figures(figures.at_ms),
            drained_ms={name: int(since) for name, since in drained if since is not None},
            lost={
                name: int(since)
                for raw, since in lost
                if (name := raw.decode()) not in living and at_ms - since < 1000 * TOLD_S
            },
            left={name: int(number) for name, number in held if number},
            num_letters=int(letters),
            num_suspects=int(suspects),
            memory=self._memory,
            has_ended=not self.ended.is_refused,
        )

    async def _look_at_memory(self) -> None:
        """Ask for the server's memory; a cluster has several, and a right may be missing."""
        if isinstance(self._redis, ClusterRedis) or time.monotonic() - self._memory_at < _MEMORY_S:
            return
        self._memory_at = time.monotonic()
        try:
            told = await self._redis.info("memory", "clients")
        except ResponseError:
            return
        self._memory = ServerMemory(
            *(
                int(told.get(name, 0))
                for name in ("used_memory", "maxmemory", "client_recent_max_output_buffer")
            )
        )
