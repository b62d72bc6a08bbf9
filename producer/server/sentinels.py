"""The master behind sentinels: asked for at every new connection, never mixed with the last one.

A deposed master that lives goes on answering for seconds. redis-py hands out what it was connected
to for as long as that answers, so that one call would reach the new master and the next the old.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.asyncio.connection import SSLConnection
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from tokenbus.producer.server.deposed import is_deposed
from tokenbus.producer.server.limited_connection import keep_cancellations
from tokenbus.producer.server.redis_py import connection_options

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.connection import AbstractConnection

    from tokenbus.producer.server.url import SentinelUrl

    Address = tuple[str, int]


class _FollowingConnection(SentinelManagedConnection):
    """Closes itself where a master that nobody follows refuses a write: another one may rule."""

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Read a reply. Raises: what the server answers; redis.ConnectionError if it is closed."""
        try:
            return await super().read_response(*args, **options)
        except ResponseError as error:
            if not is_deposed(error):
                raise
            await self.disconnect()
            raise RedisConnectionError(f"the master may have been deposed: {error}") from error


class _FollowingSslConnection(_FollowingConnection, SSLConnection):
    """The same over TLS."""


class _FollowingPool(SentinelConnectionPool):
    """Hands out connections to the last named master only."""

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Connect, to the new master if the connection was in use when that was named."""
        made: Any = connection
        if made.is_connected and (made.host, made.port) != self.master_address:
            await made.disconnect()
        await super().ensure_connection(connection)


def behind_sentinels(url: SentinelUrl, call_timeout_s: float, options: dict[str, Any]) -> Redis:
    """Make a client that follows the sentinels."""
    common: dict[str, Any] = connection_options() | {
        "socket_connect_timeout": call_timeout_s,
        "ssl": url.is_tls,
        **url.tls,
    }
    asking = common | {
        "username": url.sentinel_username,
        "password": url.sentinel_password,
        "socket_timeout": call_timeout_s,
    }
    # redis-py leaves this class untyped.
    sentinel = Sentinel(url.sentinels, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
    for asked in sentinel.sentinels:
        keep_cancellations(asked.connection_pool)
    redis: Redis = sentinel.master_for(
        url.master,
        connection_pool_class=_FollowingPool,
        connection_class=_FollowingSslConnection if url.is_tls else _FollowingConnection,
        db=url.db,
        socket_keepalive=True,
        **url.credentials,
        **common | options,
    )
    return redis


def followed_master(redis: Redis) -> Address | None:
    """Return the master that the client's calls go to; None without sentinels."""
    pool = getattr(redis, "connection_pool", None)
    return pool.master_address if isinstance(pool, _FollowingPool) else None


async def named_master(redis: Redis) -> Address | None:
    """Ask the sentinels for the master, which calls go to from now on; None without sentinels.

    Raises: redis.ConnectionError where no sentinel names one.
    """
    pool = getattr(redis, "connection_pool", None)
    if not isinstance(pool, _FollowingPool):
        return None
    address: Address = await pool.get_master_address()  # type: ignore[no-untyped-call]  # redis-py
    return address
