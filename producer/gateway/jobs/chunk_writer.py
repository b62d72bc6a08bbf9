"""Chunks of a response's body, written to the socket of its request without a task in between.

A token of a stream pays for what the way through an HTTP server costs in general: a coroutine of
each layer, the state of the protocol, a turn of the event loop. None of that depends on the token.
Here its bytes are framed as a chunk of HTTP/1.1 and handed to the transport.

It reaches into uvicorn, whose protocol classes share the few names that are used; without them, as
under another server, there is no writer, and streams go the general way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

_EXTENSION = "tokenbus.send"


class ServerSends:
    """Passes requests on with the sending end that the server gave, in front of all layers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http":
            scope.setdefault("extensions", {})[_EXTENSION] = send
        await self._app(scope, receive, send)


class Tick:
    """One turn of the event loop, in which a stream writes once at once and once at the end.

    Where the first of several tokens came alone it is not held back, and the others share a call of
    the system.
    """

    __slots__ = ("_loop", "_number", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._number = 0
        self._waiting: list[ChunkWriter] | None = None

    @property
    def number(self) -> int:
        """Return the number of this turn, and see to its end."""
        if self._waiting is None:
            self._waiting = []
            self._loop.call_soon(self._end)
        return self._number

    def wait(self, writer: ChunkWriter) -> None:
        """Let a writer write at the end of this turn."""
        if self._waiting is not None:
            self._waiting.append(writer)

    def _end(self) -> None:
        waiting, self._waiting = self._waiting, None
        self._number += 1
        for writer in waiting or ():
            writer.flush()


class ChunkWriter:
    """Writes pieces of one response's body, in order with those that are sent after a `flush`."""

    __slots__ = ("_cycle", "_flow", "_on_write", "_parts", "_tick", "_tick_number", "_transport")

    def __init__(self, cycle: Any, tick: Tick, on_write: Callable[[], None]) -> None:
        self._cycle = cycle
        self._on_write = on_write
        self._flow = cycle.flow
        self._transport: asyncio.Transport = cycle.transport
        self._tick = tick
        self._tick_number = -1
        self._parts: list[bytes] = []

    @classmethod
    def of(cls, scope: Scope, tick: Tick, on_write: Callable[[], None]) -> Self | None:
        """Return the writer of a request; None where its body does not go out in plain chunks.

        `on_write` is called with each piece.
        """
        if scope.get("http_version") != "1.1" or scope.get("method") == "HEAD":
            return None
        cycle: Any = getattr(scope.get("extensions", {}).get(_EXTENSION), "__self__", None)
        names = ("transport", "flow", "disconnected", "response_complete")
        if not all(hasattr(cycle, name) for name in names):
            return None
        return cls(cycle, tick, on_write) if hasattr(cycle.flow, "write_paused") else None

    @property
    def is_ready(self) -> bool:
        """Tell whether the reader is there and keeps up."""
        cycle = self._cycle
        return not (self._flow.write_paused or cycle.disconnected or cycle.response_complete)

    def write(self, body: bytes) -> None:
        """Write a piece that is not empty, at the end of this turn if it is not the first in it."""
        self._on_write()
        number = self._tick.number
        if self._tick_number == number:
            if not self._parts:
                self._tick.wait(self)
            self._parts.append(body)
            return
        self._tick_number = number
        self._transport.write(b"%x\r\n%b\r\n" % (len(body), body))

    def flush(self) -> None:
        """Write what waits for the end of the turn. Safe to repeat."""
        if self._parts:
            body = b"".join(self._parts)
            self._parts.clear()
            self._transport.write(b"%x\r\n%b\r\n" % (len(body), body))
