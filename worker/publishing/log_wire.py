"""One connection for the calls of one pump, without the toll of a connection pool.

A client's pool reconnects behind its user's back and costs 60-100 us a call. Here a connection that
broke stays broken until the session was opened anew: what was known about the logs is void then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError

if TYPE_CHECKING:
    from redis.asyncio import Connection, Redis

    from tokenbus.producer.script_runner import Argument


class LogWire:
    """Sends one command at a time and waits for its reply."""

    def __init__(self, redis: Redis) -> None:
        self._pool = redis.connection_pool
        self._connection: Connection | None = None
        self._may_connect = True

    async def execute(self, *args: Argument) -> Any:
        """Run one command; replies come as bytes.

        Raises: redis.ConnectionError, also where the connection was lost before; ResponseError.
        """
        connection = self._connection or await self._connect()
        try:
            await connection.send_packed_command([_pack(args)], check_health=False)
            reply = await connection.read_response(disable_decoding=True)
        except BaseException as error:
            # A reply that nobody waited for would be taken for that of the next command.
            if not _is_answer(error):
                await self._break()
            raise
        return reply

    async def renew(self) -> None:
        """Close the connection and allow another one."""
        await self._break()
        self._may_connect = True

    async def _connect(self) -> Connection:
        if not self._may_connect:
            raise RedisConnectionError("the connection for the logs was lost")
        self._may_connect = False
        # redis-py leaves both methods untyped.
        pool: Any = self._pool
        connection: Any = pool.make_connection()
        await connection.connect()
        made: Connection = connection
        self._connection = made
        return made

    async def _break(self) -> None:
        connection, self._connection = self._connection, None
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
