"""The bare socket of an opened connection: commands out, replies in, no task in between.

redis-py opens the connection (TLS, credentials, database); then its transport is taken over. Its
own reader costs two turns of the event loop and some 60 us a reply, a pub/sub message 10 us.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse

from tokenbus.producer.server.redis_py import error_maker, take_transport

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import AbstractConnection

Argument = str | bytes | int | float


class RawConnection(asyncio.Protocol):
    """Sends commands as they come and hands over every reply, in order, where the socket is read.

    Errors of the server are handed over as redis-py's exceptions. `on_lost` is called once when the
    other end or the network ends the connection. `heard` is set by every sign of life and may be
    taken back.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        take: Callable[[Any], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._take = take
        self._on_lost = on_lost
        self._parser = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self.heard = True

    async def open(self) -> None:
        """Connect and take the transport over. Raises: what redis-py's `connect` raises."""
        # redis-py leaves this method untyped.
        connection: Any = self._connection
        await connection.connect()
        self._parser = hiredis.Reader(
            protocolError=InvalidResponse, replyError=error_maker(connection)
        )
        self._transport = take_transport(connection, self)

    def send(self, command: bytes) -> None:
        """Send a packed command. Raises: redis.ConnectionError where there is no connection."""
        if self._transport is None or self._transport.is_closing():
            raise RedisConnectionError("the connection is closed")
        self._transport.write(command)

    async def close(self) -> None:
        """Close the connection at once; no reply is handed over any more."""
        self._transport = None
        # Not waiting: redis-py would wait for its own protocol, which hears nothing any more.
        await self._connection.disconnect(nowait=True)

    def data_received(self, data: bytes) -> None:
        """Hand over every reply that `data` completes."""
        self.heard = True
        self._parser.feed(data)
        next_reply, take = self._parser.gets, self._take
        try:
            while (reply := next_reply()) is not False:
                take(reply)
        except InvalidResponse:
            # No reply can be told from the next any more.
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's
        """Tell of an end that was not asked for."""
        if self._transport is not None:
            self._transport = None
            self._on_lost()


def pack(args: tuple[Argument, ...]) -> bytes:
    """Write a command in RESP."""
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        value = arg if isinstance(arg, bytes) else str(arg).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(value), value))
    return b"".join(parts)
