"""One connection for the calls of one pump, without the toll of a connection pool.

A client's pool reconnects behind its user's back and costs 60-100 us a call. Here a connection that
broke stays broken until the session was opened anew: what was known about the logs is void then.
On a cluster it is one connection per node, and a slot that moved counts as a break.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError

from tokenbus.producer.cluster import ClusterRedis, NodeConnections

if TYPE_CHECKING:
    from redis.asyncio import Connection, Redis

    from tokenbus.producer.script_runner import Argument


class LogWire:
    """Sends one command at a time and waits for its reply."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._connections: dict[str, Connection] = {}
        self._broken: set[str] = set()

    async def execute(self, *args: Argument) -> Any:
        """Run one command, a script on one key; replies come as bytes.

        Raises: redis.ConnectionError, also where the connection was lost before; ResponseError.
        """
        name, pool = await self._way_to(str(args[3]))
        connection = self._connections.get(name) or await self._connect(name, pool)
        try:
            await connection.send_packed_command([_pack(args)], check_health=False)
            reply = await connection.read_response(disable_decoding=True)
        except BaseException as error:
            # A reply that nobody waited for would be taken for that of the next command.
            if not _is_answer(error):
                await self._break(name)
            raise
        return reply

    async def renew(self) -> None:
        """Close the connections and allow others."""
        for name in list(self._connections):
            await self._break(name)
        self._broken.clear()

    async def _way_to(self, key: str) -> tuple[str, Any]:
        """Return the name of the node that serves a key, and what makes connections to it."""
        if isinstance(self._redis, ClusterRedis):
            node = await self._redis.node_of(key)
            return node.name, NodeConnections(self._redis, node)
        return "", self._redis.connection_pool

    async def _connect(self, name: str, pool: Any) -> Connection:
        if name in self._broken:
            raise RedisConnectionError("the connection for the logs was lost")
        self._broken.add(name)
        # redis-py leaves both methods untyped.
        connection: Any = pool.make_connection()
        await connection.connect()
        made: Connection = connection
        self._connections[name] = made
        return made

    async def _break(self, name: str) -> None:
        connection = self._connections.pop(name, None)
        if connection is not None:
            await connection.disconnect(nowait=True)


def _is_answer(error: BaseException) -> bool:
    """Tell whether the server itself sent this error, so that the connection is in step."""
    from redis.exceptions import ResponseError

    return isinstance(error, ResponseError)


def _pack(args: tuple[Argument, ...]) -> bytes:
    """Write a command in RESP."""
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        value = arg if isinstance(arg, bytes) else str(arg).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(value), value))
    return b"".join(parts)
