"""Limited connections: a time limit per call that swallows no cancellation.

Under `socket_timeout` redis-py writes within `asyncio.wait_for`, which before Python 3.12 drops a
cancellation that comes when the write has just ended: a task that is cancelled then goes on, and
a wait for its end lasts for ever.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool


def keep_cancellations(pool: ConnectionPool) -> None:
    """Let a pool that has opened nothing yet keep its `socket_timeout` by other means."""
    pool.connection_class = _KINDS[pool.connection_class]


class _Limited(AbstractConnection):
    """Keeps `socket_timeout` from redis-py's own connection and obeys it in its place."""

    def __init__(self, *, socket_timeout: float | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._limit_s = socket_timeout

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        """Write a command. Raises: redis-py's TimeoutError, the connection closed."""
        try:
            async with asyncio.timeout(self._limit_s):
                await super().send_packed_command(*args, **options)
        except TimeoutError:
            raise RedisTimeoutError("Timeout writing to socket") from None

    async def read_response(
        self,
        disable_decoding: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 -- redis-py's
        **options: Any,
    ) -> Any:
        """Read a reply. Raises: redis-py's TimeoutError, the connection closed.

        A `timeout` of the caller's own replaces the limit: after it there is None.
        """
        limit_s = self._limit_s if timeout is None else None
        try:
            async with asyncio.timeout(limit_s):
                return await super().read_response(disable_decoding, timeout, **options)
        except TimeoutError:
            raise RedisTimeoutError("Timeout reading from socket") from None


_KINDS: dict[type[AbstractConnection], type[AbstractConnection]] = {
    kind: type(f"Limited{kind.__name__}", (_Limited, kind), {})
    for kind in (Connection, SSLConnection, UnixDomainSocketConnection)
}
