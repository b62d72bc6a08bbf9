"""The teller of a pool: its figures, told by one control process at a time.

Each process asks for the lease; the one that has it reads the figures every two seconds, for its
metrics. So the sum over all processes is right, and there are figures while no worker lives.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from redis.exceptions import RedisError

from tokenbus.producer.answers import SERVER_ERRORS, answer_of
from tokenbus.producer.client.pool_figures import read_figures
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from tokenbus.producer.client.backlog import Assumed
    from tokenbus.producer.client.pool_figures import PoolFigures
    from tokenbus.producer.scripts import Scripts

INTERVAL_S = 2.0
# Five looks: a process that dies is followed by another before a scrape or two are missed.
LEASE_MS = 10_000


@dataclass(frozen=True, slots=True)
class Watched:
    """What the watcher tells beside the figures; memory is in bytes, its bound 0 where none is.

    `num_lost` counts the workers that were lost while it watched, `suspects` are jobs that wait.
    """

    figures: PoolFigures
    dead_letters: int
    suspects: int
    num_lost: int
    memory_bytes: int | None
    max_memory_bytes: int | None


class PoolTeller:
    """Reads the figures of one pool while it has the lease; `seen` is None otherwise."""

    def __init__(self, scripts: Scripts, *, assumed: Assumed) -> None:
        self.seen: Watched | None = None
        self._scripts = scripts
        self._assumed = assumed
        self._name = f"{socket.gethostname()}-{secrets.token_hex(6)}"
        self._known_model = ""
        self._looked_ms: int | None = None
        self._num_lost = 0
        self.is_server_up = False
        self._log = get_logger()

    async def run(self) -> NoReturn:
        """Watch for ever; a server that is away is asked again. The lease ends with the watch."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(INTERVAL_S)
        finally:
            self.seen = None
            await self._give_up()

    async def look(self) -> None:
        """Ask for the lease, and read the figures with it."""
        try:
            has_lease = await self._scripts.control.watch(self._name, LEASE_MS)
            self.seen = await self._read() if has_lease else None
            if not has_lease:
                # What is lost meanwhile is counted by the one that watches.
                self._looked_ms = None
            self.is_server_up = True
        except (*SERVER_ERRORS, RedisError) as error:
            # A process that cannot ask does not keep the lease for long.
            self.seen, self.is_server_up = None, False
            self._log.warning("pool.not_watched", reason=answer_of(error).told)

    async def _read(self) -> Watched:
        redis: Any = self._scripts.redis
        keys = self._scripts.keys
        figures = await read_figures(redis, keys, assumed=self._assumed)
        if figures.model and figures.model != self._known_model:
            # For the time when no worker lives.
            await redis.hset(keys.of("drain"), "model", figures.model)
            self._known_model = figures.model
        async with redis.pipeline(transaction=False) as pipe:
            pipe.xlen(keys.of("dead"))
            pipe.xlen(keys.of("suspects"))
            letters, suspects = await pipe.execute()
        await self._count_lost(figures.at_ms)
        memory = await self._memory(redis)
        return Watched(
            figures,
            letters,
            suspects,
            self._num_lost,
            memory.get("used_memory"),
            memory.get("maxmemory"),
        )

    async def _count_lost(self, at_ms: int) -> None:
        """Count the workers that a scan has noted as lost since the last look."""
        if self._looked_ms is not None:
            redis: Any = self._scripts.redis
            key = self._scripts.keys.of("lost")
            self._num_lost += await redis.zcount(key, f"({self._looked_ms}", at_ms)
        self._looked_ms = at_ms

    async def _memory(self, redis: Any) -> dict[str, int]:
        """Read the server's memory; nothing where its user may not ask, or there are many."""
        try:
            told = await redis.info("memory")
        except RedisError as error:
            if answer_of(error).code != "NOPERM":
                raise
            return {}
        return {name: value for name, value in told.items() if isinstance(value, int)}

    async def _give_up(self) -> None:
        try:
            async with asyncio.timeout(INTERVAL_S):
                await self._scripts.control.watch(self._name, 0)
        except (*SERVER_ERRORS, RedisError) as error:
            self._log.debug("pool.lease_left", reason=answer_of(error).told)
