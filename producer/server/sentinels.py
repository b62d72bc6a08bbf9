"""The master: asked of sentinels at every new connection, and left where it was deposed.

A deposed master that lives goes on answering. redis-py hands out what it was connected to for as
long as that answers, so that one call would reach the new master and the next the old. Without
sentinels too: a managed service that fails over makes the old master a replica, and its address
leads elsewhere only for those who connect anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
)
from redis.exceptions import AuthenticationError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from tokenbus.producer.answers import SERVER_ERRORS, answer_of
from tokenbus.producer.server.limited_connection import keep_cancellations
from tokenbus.producer.server.redis_py import connection_options

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool, Redis

    from tokenbus.producer.server.url import SentinelUrl

    Address = tuple[str, int]


# What a master that nobody follows any more answers, or one that is a replica by now.
_DEPOSED = ("READONLY", "UNBLOCKED", "REDIRECT", "MASTERDOWN", "NOMASTERLINK", "NOREPLICAS")


def is_of_deposed(error: ResponseError) -> bool:
    """Tell whether a master has answered that is none any more."""
    return answer_of(error).code in _DEPOSED


def leave_deposed(pool: ConnectionPool) -> None:
    """Let a pool that has opened nothing yet close what a deposed master has answered on."""
    pool.connection_class = _LEAVING[pool.connection_class]


class _Leaving(AbstractConnection):
    """Closes itself after such an answer: the next one looks up where the master is by now."""

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        """Write a command. Raises: redis.ConnectionError where the connection was closed before.

        Python 3.12's transports make a TypeError of that.
        """
        writer = getattr(self, "_writer", None)
        if writer is not None and writer.transport.is_closing():
            raise RedisConnectionError("the connection was closed")
        await super().send_packed_command(*args, **options)

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Read a reply. Raises: what the server answers."""
        try:
            return await super().read_response(*args, **options)
        except ResponseError as error:
            if is_of_deposed(error):
                await self.disconnect(nowait=True)
            raise


_LEAVING: dict[type[AbstractConnection], type[AbstractConnection]] = {
    kind: type(f"Leaving{kind.__name__}", (_Leaving, kind), {})
    for kind in (Connection, SSLConnection, UnixDomainSocketConnection)
}


class _FollowingConnection(SentinelManagedConnection):
    """Closes itself where a master that nobody follows refuses a write: another one may rule."""

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Read a reply. Raises: what the server answers; redis.ConnectionError if it is closed."""
        try:
            return await super().read_response(*args, **options)
        except ResponseError as error:
            if not is_of_deposed(error):
                raise
            await self.disconnect()
            raise RedisConnectionError(f"the master may have been deposed: {error}") from error


class _FollowingSslConnection(_FollowingConnection, SSLConnection):
    """The same over TLS."""


class _Sentinels(Sentinel):
    """Asks every sentinel in turn, and tells what each answered where none names a master."""

    async def discover_master(self, service_name: str) -> Address:
        """Return the address of the master.

        Raises: redis.ConnectionError where no sentinel names one; the first refusal where all of
        them refuse, which no waiting mends.
        """
        failures: list[tuple[str, BaseException]] = []
        asked: Any = self
        for number, sentinel in enumerate(asked.sentinels):
            at = sentinel.connection_pool.connection_kwargs
            place = f"{at['host']}:{at['port']}"
            try:
                masters = await sentinel.sentinel_masters()
            except SERVER_ERRORS as error:
                failures.append((place, error))
                continue
            state = masters.get(service_name)
            if state and asked.check_master_state(state, service_name):
                # The one that knows is asked first from now on.
                asked.sentinels[0], asked.sentinels[number] = sentinel, asked.sentinels[0]
                return state["ip"], state["port"]
        raise _no_master(service_name, len(asked.sentinels), failures)


def _no_master(
    name: str, num_sentinels: int, failures: list[tuple[str, BaseException]]
) -> Exception:
    """Return the error for sentinels none of which names a master, and what they said."""
    told = [(place, error, answer_of(error)) for place, error in failures]
    if len(told) == num_sentinels and all(answer.is_refusal for *_, answer in told):
        place, error, answer = told[0]
        if answer.is_of_credentials:
            return AuthenticationError(f"{answer.code} sentinel {place}: {answer.text}")
        made = RedisConnectionError(f"sentinel {place}: {answer.text}")
        made.__cause__ = error
        return made
    text = f"no sentinel names a master {name!r}"
    # Of an answer its code alone: this error is one of those that sentinels gave together.
    said = "; ".join(
        f"{place}: {answer.text if answer.says_nothing else answer.code}"
        for place, _, answer in told
    )
    return MasterNotFoundError(f"{text} ({said})" if said else text)


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
        **url.sentinel_credentials,
        "socket_timeout": call_timeout_s,
    }
    # redis-py leaves this class untyped.
    sentinel = _Sentinels(url.sentinels, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
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
