"""Connections to a server: opened with back-off, checked once, described without a password."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ClusterError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tokenbus.producer.errors import ServerUnreachable, ServerUnsuitable
from tokenbus.producer.server.cluster import NUM_SHARDS, make_cluster
from tokenbus.producer.server.embedded import EmbeddedServer, join_shared, start_private
from tokenbus.producer.server.sentinels import behind_sentinels
from tokenbus.producer.server.url import SentinelUrl, ServerKind, ServerUrl

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeVar

    T = TypeVar("T")

MIN_VERSION = (7, 0)
FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 1.0

_AWAY = (
    RedisConnectionError,
    RedisTimeoutError,
    BusyLoadingError,
    ReadOnlyError,
    OutOfMemoryError,
    # A cluster that is moving slots, electing a master or not whole.
    AskError,
    ClusterError,
    ClusterDownError,
    TryAgainError,
    RedisClusterException,
    TimeoutError,
    OSError,
)
_AWAY_ANSWERS = (
    *("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "MOVED", "ASK"),
    "NOREPLICAS",  # min-replicas-to-write: a master that may have been deposed takes nothing
)


def is_refused(error: BaseException | None) -> bool:
    """Tell whether the server refused the credentials; redis-py hides that in its causes."""
    while error is not None:
        if isinstance(error, AuthenticationError):
            return True
        error = error.__cause__
    return False


def is_away(error: BaseException) -> bool:
    """Tell whether an error means that the server cannot be reached now, and may be later."""
    if is_refused(error):
        return False
    if isinstance(error, _AWAY):
        return True
    return isinstance(error, ResponseError) and str(error).startswith(_AWAY_ANSWERS)


async def retrying(call: Callable[[], Awaitable[T]], url: ServerUrl, retry_for_s: float) -> T:
    """Repeat a call that is safe to repeat, with back-off, while the server is away.

    Raises: ServerUnreachable after `retry_for_s`; whatever else the call raises.
    """
    deadline = time.monotonic() + retry_for_s
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return await call()
        except (RedisError, OSError) as error:
            if not is_away(error):
                raise
            if time.monotonic() + pause_s > deadline:
                reason = str(error) or type(error).__name__
                raise ServerUnreachable(
                    f"no server at {url} after {retry_for_s:g} s of trying: {reason}"
                ) from error
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, MAX_PAUSE_S)


@dataclass(slots=True)
class Server:
    """An opened and checked server; `redis` is its client, `close` lets both go."""

    url: ServerUrl
    redis: Redis
    _effective_url: str = field(repr=False)
    _embedded: EmbeddedServer | None = None

    @property
    def effective_url(self) -> str:
        """Return the URL other processes connect to: the socket of an embedded server."""
        return self._effective_url

    @property
    def num_shards(self) -> int:
        """Return over how many hash slots the token logs of a pool are spread."""
        return NUM_SHARDS if self.url.kind is ServerKind.CLUSTER else 1

    async def close(self) -> None:
        """Close the connections and let an embedded server go."""
        await self.redis.aclose()
        if self._embedded is not None:
            await asyncio.to_thread(self._embedded.close)


def make_redis(url: str, call_timeout_s: float = 5.0, **options: Any) -> Redis:
    """Make a client that reads bytes and repeats nothing by itself; the URL's options go first.

    Raises: UrlInvalid.
    """
    parsed = ServerUrl.parse(url)
    if parsed.kind is ServerKind.SENTINEL:
        return behind_sentinels(SentinelUrl.parse(parsed.text), call_timeout_s, options)
    bare, given = parsed.client_arguments()
    arguments = {"socket_connect_timeout": call_timeout_s} | options | given
    if parsed.kind is ServerKind.CLUSTER:
        cluster: Any = make_cluster(bare, **arguments)
        made: Redis = cluster
        return made
    if "host" in given:
        arguments.setdefault("socket_keepalive", True)
    redis: Redis = Redis.from_url(bare, **arguments)
    return redis


async def open_server(
    url: str, *, retry_for_s: float = 15.0, call_timeout_s: float = 5.0, **options: Any
) -> Server:
    """Open the server of a URL, starting an embedded one if need be, and check that it will do.

    Further options go to redis-py's client.
    Raises: UrlInvalid, EmbeddedUnavailable, ServerUnreachable, ServerUnsuitable.
    """
    parsed = ServerUrl.parse(url)
    embedded: EmbeddedServer | None = None
    if parsed.kind is ServerKind.PRIVATE:
        embedded = await asyncio.to_thread(start_private)
    elif parsed.path is not None:
        embedded = await asyncio.to_thread(join_shared, parsed.path)
    effective_url = url if embedded is None else embedded.url
    server = Server(
        parsed, make_redis(effective_url, call_timeout_s, **options), effective_url, embedded
    )
    try:
        await retrying(lambda: _check(server, call_timeout_s), parsed, retry_for_s)
    except BaseException:
        await server.close()
        raise
    return server


async def _check(server: Server, call_timeout_s: float) -> None:
    """Check version and eviction policy. Raises: ServerUnsuitable with one sentence."""
    async with asyncio.timeout(call_timeout_s):
        try:
            info = await server.redis.info()
        except RedisError as error:
            if is_refused(error):
                raise ServerUnsuitable(
                    f"the server at {server.url} refuses the credentials: {error}"
                ) from None
            if is_away(error):
                raise
            raise ServerUnsuitable(f"the server at {server.url} refuses: {error}") from None
    version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    if version < MIN_VERSION:
        raise ServerUnsuitable(
            f"the server at {server.url} is version {info['redis_version']};"
            " Redis 7.0 or Valkey 7.2 is the oldest that will do"
        )
    if info.get("cluster_enabled") and server.url.kind is not ServerKind.CLUSTER:
        raise ServerUnsuitable(
            f"the server at {server.url} is a node of a cluster; write redis+cluster://host:port"
        )
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        raise ServerUnsuitable(
            f"the server at {server.url} may evict jobs (maxmemory-policy {policy});"
            " set maxmemory-policy noeviction"
        )
