"""The log connection: the one of a log writer, without the cost of a connection pool.

A direct connection reconnects unseen. Here one that broke stays broken until the session opens
anew: what was known about the logs is void then. On a cluster there is one connection per node, and
a slot that moved counts as a break.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from tokenbus.producer.server.cluster import ClusterRedis, NodeConnections
from tokenbus.producer.server.direct_connection import CallConnection
from tokenbus.producer.server.raw_connection import pack

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tokenbus.producer.server.raw_connection import Argument


class LogConnection:
    """Sends one command at a time and waits for its reply."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._connections: dict[str, CallConnection] = {}
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

    async def _connect(self, name: str, pool: Any) -> CallConnection:
        if name in self._broken:
            raise RedisConnectionError("the connection for the logs was lost")
        self._broken.add(name)
        connection = CallConnection(pool.make_connection())
        await connection.open()
        self._connections[name] = connection
        return connection

    async def _break(self, name: str) -> None:
        connection = self._connections.pop(name, None)
        if connection is not None:
            await connection.close()
