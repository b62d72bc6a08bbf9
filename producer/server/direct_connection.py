"""The direct connection: one socket for all calls of a client, without the cost of a pool.

A pool of redis-py looks at each connection before it hands it out, and its reader takes two turns
of the event loop for a reply: that costs as much as the call itself. Here commands go out as they
come, and each reply goes to its caller where the socket is read. Nothing is sent twice: what a lost
call did is settled by the rules of reconciling.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from tokenbus.producer.server.cluster import ClusterRedis
from tokenbus.producer.server.raw_connection import RawConnection, pack
from tokenbus.producer.server.sentinels import followed_master, is_of_deposed

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.connection import AbstractConnection

    from tokenbus.producer.server.raw_connection import Argument


class CallConnection:
    """A connection that gives each reply to the call it answers; lost once, it is lost for good."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._raw = RawConnection(connection, self._take, self._lose)
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self.is_open = False

    @property
    def is_idle(self) -> bool:
        """Tell whether no caller waits for a reply."""
        return all(reply.done() for reply in self._waiting)

    async def open(self) -> None:
        """Connect. Raises: what redis-py's `connect` raises."""
        await self._raw.open()
        self.is_open = True

    async def run(self, *commands: bytes) -> Any:
        """Send packed commands together and wait for the reply to the last.

        Raises: redis.ConnectionError where the connection is lost; redis.ResponseError for any.
        """
        self._raw.send(b"".join(commands))
        make = asyncio.get_running_loop().create_future
        replies: list[asyncio.Future[Any]] = [make() for _ in commands]
        self._waiting += replies
        try:
            for reply in replies:
                answer = await reply
        except BaseException:
            for reply in replies:
                reply.cancel()
            raise
        return answer

    async def close(self) -> None:
        """Close it at once; calls under way end with a ConnectionError."""
        self._lose()
        await self._raw.close()

    def _take(self, reply: Any) -> None:
        # Nobody asked for what a server says before it hangs up.
        waiting = self._waiting.popleft() if self._waiting else None
        if waiting is None or waiting.done():
            return
        if isinstance(reply, Exception):
            waiting.set_exception(reply)
        else:
            waiting.set_result(reply)

    def _lose(self) -> None:
        self.is_open = False
        while self._waiting:
            self._take(RedisConnectionError("the server closed the connection"))


class DirectConnection:
    """Makes single calls of a client; connects, and connects anew, when one is made.

    On a cluster redis-py makes them, which finds the node of each.
    A connection on which a call was given up takes no other: who gave up because nothing was heard
    may be followed by others that would not hear anything either.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis
        self._connection: CallConnection | None = None
        self._master = followed_master(redis)
        self._opening = asyncio.Lock()

    async def execute(self, *args: Argument, behind: tuple[Argument, ...] = ()) -> Any:
        """Make one call; replies come as bytes.

        The server answers the command that it goes `behind` first, and waits with it if that waits.
        Raises: redis.ConnectionError, ResponseError, also for the other; what connecting raises.
        """
        calls = (behind, args) if behind else (args,)
        if isinstance(self._redis, ClusterRedis):
            return [await self._redis.execute_command(*call) for call in calls][-1]
        commands = map(pack, calls)
        connection = await self._open()
        try:
            return await connection.run(*commands)
        except ResponseError as error:
            if is_of_deposed(error):
                self._leave(connection)
            raise
        except BaseException:
            self._leave(connection)
            raise
        finally:
            if connection is not self._connection and connection.is_idle:
                await connection.close()

    async def close(self) -> None:
        """Close the connection at once; the next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _open(self) -> CallConnection:
        """Return the connection for the next call."""
        async with self._opening:
            connection = self._connection
            if connection is not None and connection.is_open and self._follows():
                return connection
            await self.close()
            connection = CallConnection(self._redis.connection_pool.make_connection())
            try:
                await connection.open()
            except BaseException:
                await connection.close()
                raise
            self._connection, self._master = connection, followed_master(self._redis)
            return connection

    def _follows(self) -> bool:
        """Tell whether it leads to the master that sentinels have named last."""
        return followed_master(self._redis) == self._master

    def _leave(self, connection: CallConnection) -> None:
        """Give no further call to a connection; those under way on it go on."""
        if self._connection is connection:
            self._connection = None
