"""The session: the right to write, from a reconcile to the next sign of trouble.

Every call on the server goes through `Session.call`. A call that fails for want of a server, or
is under way when the session is lost, raises SessionLost and has no effect on the worker's memory:
what it did on the server is found out by the reconcile that opens the session again (R7).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NoReturn, TypeVar

from redis.exceptions import RedisError

from tokenbus.producer.answers import SERVER_ERRORS, answer_of
from tokenbus.worker.errors import SessionLost
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from tokenbus.producer.server.direct_connection import DirectConnection

T = TypeVar("T")

# Calls under way at once; those of the log writers are not counted.
MAX_CONCURRENT_CALLS = 6
# Leases after whose length a renewal is too old to write by (R7).
STALE_LEASES = 3


class Session:
    """One worker's standing with the server; `generation` grows with every loss.

    A publisher process has one of its own, which the worker opens and renews.
    """

    def __init__(
        self, redis: Redis, lease_ttl_s: float, direct: DirectConnection | None = None
    ) -> None:
        self._redis = redis
        self._direct = direct
        self._stale_after_s = STALE_LEASES * lease_ttl_s
        self._opened = asyncio.Event()
        self._lost = asyncio.Event()
        self._lost.set()
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_CALLS)
        self._under_way: set[asyncio.Timeout] = set()
        self._renewed_at = 0.0
        # When the server takes what is stale: ms of its time, 0 where it does not know.
        self.until_ms = 0
        self._log = get_logger()
        self._listeners: list[Callable[[str], None]] = []
        self.generation = 0
        self.opened_at = 0.0
        self.num_losses = 0

    @property
    def is_open(self) -> bool:
        """Tell whether calls may be made; a lease grown stale closes the session."""
        if self._opened.is_set() and time.monotonic() - self._renewed_at > self._stale_after_s:
            self.lose("the last renewal is too old")
        return self._opened.is_set()

    async def opened(self) -> None:
        """Wait until calls may be made."""
        while not self.is_open:
            await self._opened.wait()

    async def lost(self) -> None:
        """Wait until the session has to be opened again."""
        await self._lost.wait()

    def when_lost(self, tell: Callable[[str], None]) -> None:
        """Tell why each time that the session is lost, at once."""
        self._listeners.append(tell)

    def open(self, renewed_at: float | None = None, until_ms: int = 0) -> None:
        """Let calls through after a reconcile, which has renewed the lease now or at that time."""
        self.renewed(renewed_at, until_ms)
        self.opened_at = time.monotonic()
        self._lost.clear()
        self._opened.set()

    @property
    def renewed_at(self) -> float:
        """Return when the lease was renewed last, by the monotonic clock."""
        return self._renewed_at

    def renewed(self, at: float | None = None, until_ms: int = 0) -> None:
        """Note that the server answered a renewal just now, or at that time.

        By its own clock what is written by it is stale at `until_ms`; 0 if that is not known.
        """
        self._renewed_at = time.monotonic() if at is None else at
        self.until_ms = until_ms

    def lose(self, reason: str) -> None:
        """Close the session: nothing is written before the next reconcile."""
        if not self._opened.is_set():
            return
        self.generation += 1
        self.num_losses += 1
        self._opened.clear()
        self._lost.set()
        now = asyncio.get_running_loop().time()
        for call in self._under_way:
            if not call.expired():
                call.reschedule(now)
        self._log.warning("session.lost", reason=reason)
        for tell in self._listeners:
            tell(reason)

    async def call(
        self,
        act: Callable[[], Awaitable[T]],
        *,
        bulk: bool = False,
        timeout_s: float | None = None,
    ) -> T:
        """Run one exchange with the server; `bulk` ones have connections of their own.

        One that does not bound itself gets `timeout_s`, after which the session is lost.

        Raises: SessionLost if the session is or gets lost; RedisError for a call that was wrong.
        """
        if bulk:
            return await self._call(act, timeout_s)
        async with self._slots:
            return await self._call(act, timeout_s)

    async def every(
        self,
        interval_s: float,
        act: Callable[[], Awaitable[None]],
        *,
        refused: Callable[[RedisError], None],
        refused_pause_s: float = 0.0,
    ) -> NoReturn:
        """Act for ever while the session is open, and at once when it opens again.

        `refused` is told of each call that the server did not accept; after it the next act waits
        `refused_pause_s` longer.
        """
        while True:
            await self.opened()
            wait_s = interval_s
            try:
                await act()
            except SessionLost:
                continue
            except RedisError as error:
                refused(error)
                wait_s += refused_pause_s
            await asyncio.sleep(wait_s)

    async def _call(self, act: Callable[[], Awaitable[T]], timeout_s: float | None) -> T:
        if not self.is_open:
            raise SessionLost("the session is not open")
        generation = self.generation
        try:
            async with asyncio.timeout(timeout_s) as scope:
                self._under_way.add(scope)
                try:
                    answer = await act()
                finally:
                    self._under_way.discard(scope)
        except SERVER_ERRORS as error:
            said = answer_of(error)
            if said.is_of_call:
                raise
            if generation == self.generation:
                self.lose(said.told)
            raise SessionLost(said.told) from error
        if generation != self.generation:
            raise SessionLost("the session was lost meanwhile")
        return answer

    async def drop_connections(self) -> None:
        """Close every connection, so that no call of the lost session can linger."""
        if self._direct is not None:
            await self._direct.close()
        await self._redis.connection_pool.disconnect(inuse_connections=True)
