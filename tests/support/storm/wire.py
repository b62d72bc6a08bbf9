"""A blocking connection to the server: nothing but the schedule decides the order of calls."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import hiredis
from redis import Redis
from redis.exceptions import NoScriptError, ResponseError

if TYPE_CHECKING:
    from collections.abc import Callable

_READ_BYTES = 1 << 16


class Wire:
    """A blocking connection to the server on a Unix socket."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(30)
        self._socket.connect(path)
        self._reader = hiredis.Reader()
        self._parsers: dict[str, Callable[[Any], Any]] = dict(Redis().response_callbacks)

    def send(self, *args: Any) -> None:
        """Send one command."""
        self._socket.sendall(hiredis.pack_command(args))

    def read(self) -> Any:
        """Wait for one reply as it came."""
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(_READ_BYTES))
        return reply

    def run(self, *args: Any) -> Any:
        """Run one command and read its reply as redis-py does. Raises: ResponseError."""
        self.send(*args)
        reply = self.read()
        if isinstance(reply, hiredis.ReplyError):
            text = str(reply)
            raise (NoScriptError if text.startswith("NOSCRIPT") else ResponseError)(text)
        parse = self._parsers.get(args[0])
        return reply if parse is None else parse(reply)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


@dataclass(frozen=True, slots=True)
class Truth:
    """A client whose calls all arrive at once and all get their reply."""

    wire: Wire

    async def execute_command(self, *args: Any) -> Any:
        """Run one command. Raises: ResponseError."""
        return self.wire.run(*args)
