"""The log connection: the one of a log writer, without the cost of a connection pool.

A client's pool reconnects unseen and costs 60-100 us a call. Here a connection that broke stays
broken until the session opens anew: what was known about the logs is void then. On a cluster there
is one connection per node, and a slot that moved counts as a break.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from tokenbus.producer.server.cluster import ClusterRedis, NodeConnections
from tokenbus.producer.server.raw_connection import RawConnection, pack

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.connection import AbstractConnection

    from tokenbus.producer.server.raw_connection import Argument


class _Connection:
    """One connection with at most one command under way."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._raw = RawConnection(connection, self._take, self._lose)
        self._reply: asyncio.Future[Any] | None = None
        self.open = self._raw.open
        self.close = self._raw.close

    async def run(self, command: bytes) -> Any:
        """Send a command and wait for its reply."""
        reply = self._reply = asyncio.get_running_loop().create_future()
        self._raw.send(command)
        return await reply

    def _take(self, reply: Any) -> None:
        waiting, self._reply = self._reply, None
        if waiting is None or waiting.done():
            return
        if isinstance(reply, Exception):
            waiting.set_exception(reply)
        else:
            waiting.set_result(reply)

    def _lose(self) -> None:
        self._take(RedisConnectionError("the server closed the connection for the logs"))


class LogConnection:
    """Sends one command at a time and waits for its reply."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._connections: dict[str, _Connection] = {}
        self._broken: set[str] = set()

    async def execute(self, *args: Argument) -> Any:
        """Run one command, a script on one key; replies come as bytes.

        Raises: redis.ConnectionError, also where the connection was lost before; ResponseError.
        """
        name, pool = await self._way_to(str(args[3]))
        connection = self._connections.get(name) or await self._connect(name, pool)
        try:
            return await connection.run(pack(args))
        except ResponseError:
            # The server itself answered: the connection is in step.
            raise
        except BaseException:
            # The reply may still come, and would be taken for that of the next command.
            await self._break(name)
            raise

    async def renew(self) -> None:
        """Close the connections and allow others."""
        for name in list(self._connections):
            await self._break(name)
        self._broken.clear()

    async def _way_to(self, key: str) -> tuple[str, Any]:
        """Return the name of the node that serves a key, and the maker of connections to it."""
        if isinstance(self._redis, ClusterRedis):
            node = await self._redis.node_of(key)
            return node.name, NodeConnections(self._redis, node)
        return "", self._redis.connection_pool

    async def _connect(self, name: str, pool: Any) -> _Connection:
        if name in self._broken:
            raise RedisConnectionError("the connection for the logs was lost")
        self._broken.add(name)
        connection = _Connection(pool.make_connection())
        await connection.open()
        self._connections[name] = connection
        return connection

    async def _break(self, name: str) -> None:
        connection = self._connections.pop(name, None)
        if connection is not None:
            await connection.close()
