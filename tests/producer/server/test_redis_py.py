"""What of redis-py is private and used all the same is there, in the release that is installed.

`make newest-redis` runs these, the clients and a worker with the newest release.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import OutOfMemoryError

from tokenbus.producer.server.connection import make_redis
from tokenbus.producer.server.raw_connection import RawConnection, pack
from tokenbus.producer.server.redis_py import cluster_options, connection_options, error_maker

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tokenbus.producer.server.embedded import EmbeddedServer


def connection_of(redis: Any) -> Any:
    """Return a connection of a client, not yet open; redis-py gives it no type."""
    return redis.connection_pool.make_connection()


async def test_socket_of_a_connection_is_taken_over(private_server: EmbeddedServer) -> None:
    """Replies come where the socket is read, errors among them as redis-py's own."""
    replies: asyncio.Queue[Any] = asyncio.Queue()
    redis = make_redis(private_server.url)
    wire = RawConnection(connection_of(redis), replies.put_nowait, lambda: None)
    await wire.open()
    wire.send(pack(("PING",)) + pack(("EVAL", "return redis.error_reply('OOM full')", 0)))
    async with asyncio.timeout(PATIENCE_S):
        assert await replies.get() == b"PONG"
        assert isinstance(await replies.get(), OutOfMemoryError)
    await wire.close()
    await redis.aclose()


async def test_protocol_error_ends_a_connection(private_server: EmbeddedServer) -> None:
    """After bytes that are no reply none can be told from the next: whoever waits is told."""
    lost = asyncio.Event()
    redis = make_redis(private_server.url)
    wire = RawConnection(connection_of(redis), lambda _: None, lost.set)
    await wire.open()
    wire.data_received(b"HTTP/1.1 400 Bad Request\r\n")
    async with asyncio.timeout(PATIENCE_S):
        await lost.wait()
    await wire.close()
    await redis.aclose()


async def test_opened_connection_makes_errors(private_server: EmbeddedServer) -> None:
    """The text of an error reply becomes the exception of its code."""
    redis = make_redis(private_server.url)
    connection = connection_of(redis)
    await connection.connect()
    assert isinstance(error_maker(connection)("OOM full"), OutOfMemoryError)
    await connection.disconnect()
    await redis.aclose()


def test_options_are_known() -> None:
    """No option that makes releases alike is one that this release does not know."""
    known = set(inspect.signature(AbstractConnection.__init__).parameters)
    assert connection_options().keys() <= known
    assert cluster_options().keys() <= set(inspect.signature(RedisCluster.__init__).parameters)


async def test_calls_are_never_repeated(private_server: EmbeddedServer) -> None:
    """What a lost call did is settled by reconciling, whatever the release does by default."""
    redis: Redis = make_redis(private_server.url)
    made = connection_of(redis)
    assert made.retry._retries == 0
    assert made.socket_timeout is None
    await redis.aclose()


def test_release_is_the_one_that_is_meant() -> None:
    """`make newest-redis` says which major it has installed; elsewhere any will do."""
    wanted = os.environ.get("TOKENBUS_TEST_REDIS_PY")
    if wanted is None:
        pytest.skip("no release is asked for")
    assert metadata.version("redis").split(".")[0] >= wanted
