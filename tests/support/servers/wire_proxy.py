"""A server's address that fails on purpose: it knows each call by its script's name.

Stands between one side and the server on Unix sockets, in the test's own event loop. It can swallow
a call, lose the reply to a call that was carried out, cut every connection, or fall silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import hiredis
from patience import PATIENCE_S

from tokenbus.producer.scripts.source import script_sha, script_source

if TYPE_CHECKING:
    from collections.abc import Callable

_READ_BYTES = 1 << 16
SCRIPTS = (
    "append", "begin", "cancel", "complete_many", "drain_inbox", "end", "expire_many", "leave",
    "pull", "raise_epoch", "reject", "renew", "requeue", "retain_many", "scan", "submit",
    "takeover", "tick", "unpull",
)  # fmt: skip


class Moment(Enum):
    """When a trap closes, and what becomes of the call.

    It is `never` sent, or `held` until the trap is opened; its reply is `lost` or just `delivered`.
    """

    NEVER = "never"
    HELD = "held"
    LOST = "lost"
    DELIVERED = "delivered"


@dataclass(slots=True)
class Trap:
    """Wait for the `nth` call of a script from now on, then run `spring` at the moment asked for.

    If the call is `never` sent or its reply `lost`, its connection is cut. With an `answer`, an
    error as the server words it, the call gets that instead and the connection stays.
    """

    script: str
    moment: Moment
    nth: int
    spring: Callable[[], None]
    answer: str = ""
    _sprung: asyncio.Event = field(default_factory=asyncio.Event)
    _opened: asyncio.Event = field(default_factory=asyncio.Event)

    def close(self) -> None:
        """Do what the trap is for."""
        self.spring()
        self._sprung.set()

    @property
    def has_closed(self) -> bool:
        """Tell whether it has closed."""
        return self._sprung.is_set()

    async def closed(self) -> None:
        """Wait until it has closed."""
        async with asyncio.timeout(PATIENCE_S):
            await self._sprung.wait()

    def open(self) -> None:
        """Let a held call go on."""
        self._opened.set()

    async def opened(self) -> None:
        """Wait until a held call may go on."""
        await self._opened.wait()


class WireProxy:
    """Forwards connections to `upstream`, a socket path that may be changed at any time."""

    def __init__(self, upstream: Path) -> None:
        self.upstream = upstream
        self._folder = tempfile.TemporaryDirectory(prefix="tb-wire-")
        self.path = Path(self._folder.name) / "wire.sock"
        self._names = {script_sha(name).encode(): name for name in SCRIPTS}
        self._names |= {script_source(name).encode(): name for name in SCRIPTS}
        self._traps: list[Trap] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._is_cut = False
        self._is_closing = False
        self.reply_to_all = b""
        self._flows = asyncio.Event()
        self._flows.set()

    @property
    def url(self) -> str:
        """Return the address to give to whoever is to suffer."""
        return f"unix://{self.path}"

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._accept, str(self.path))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Hang up everywhere."""
        self._is_closing = True
        self._flows.set()
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._folder.cleanup()

    def trap(self, script: str, moment: Moment, spring: Callable[[], None], nth: int = 1) -> Trap:
        """Set a trap that closes once."""
        trap = Trap(script, moment, nth, spring)
        self._traps.append(trap)
        return trap

    def refuse(self, script: str, answer: str, nth: int = 1) -> Trap:
        """Let a call be answered by an error, as by a server that did not carry it out."""
        trap = Trap(script, Moment.NEVER, nth, lambda: None, answer)
        self._traps.append(trap)
        return trap

    def answer_all(self, reply: str) -> None:
        """Answer every command by this line of the protocol, pass none on; an empty one ends it."""
        self.reply_to_all = reply.encode()

    def cut(self) -> None:
        """Close every connection and refuse new ones."""
        self._is_cut = True
        self.hang_up()

    def mend(self) -> None:
        """Let connections through again."""
        self._is_cut = False
        self._flows.set()

    def fall_silent(self) -> None:
        """Keep connections open and carry nothing any more, in either direction."""
        self._flows.clear()

    def hang_up(self) -> None:
        """Close every connection; new ones are welcome."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection is served outside a task")
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if not self._is_cut:
                await self._carry(reader, writer)
        except OSError:
            return
        except asyncio.CancelledError:
            if not self._is_closing:
                raise
        finally:
            self._writers.discard(writer)
            writer.transport.abort()
            self._tasks.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(str(self.upstream))
        connection = _Connection(self, reader, writer, server_reader, server_writer)
        self._writers.add(server_writer)
        back = asyncio.ensure_future(connection.carry_replies())
        try:
            await connection.carry_calls()
        finally:
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
            connection.give_up()
            self._writers.discard(server_writer)
            server_writer.transport.abort()

    async def flows(self) -> None:
        """Wait while the proxy is silent."""
        await self._flows.wait()

    def trap_of(self, call: Any) -> Trap | None:
        """Return the trap that this call closes."""
        if not isinstance(call, list) or len(call) < 2 or not bytes(call[0]).startswith(b"EVAL"):
            return None
        name = self._names.get(call[1])
        for trap in self._traps:
            if trap.script == name:
                trap.nth -= 1
                if trap.nth == 0:
                    self._traps.remove(trap)
                    return trap
        return None


class _Connection:
    """One connection in both directions."""

    def __init__(
        self,
        proxy: WireProxy,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._reader, self._writer = reader, writer
        self._server_reader, self._server_writer = server_reader, server_writer
        self._trap: Trap | None = None
        self._num_owed = 0
        self._is_paid = asyncio.Event()
        self._is_paid.set()

    def give_up(self) -> None:
        """Close a trap whose reply will never come: somebody else cut the connection first."""
        if self._trap is not None:
            self._trap.close()

    async def carry_calls(self) -> None:
        """Forward calls one by one until either side ends."""
        parser = hiredis.Reader()
        while data := await self._reader.read(_READ_BYTES):
            await self._proxy.flows()
            parser.feed(data)
            while (call := parser.gets()) is not False:
                if self._proxy.reply_to_all:
                    await self._is_paid.wait()
                    self._writer.write(self._proxy.reply_to_all + b"\r\n")
                    continue
                trap = self._proxy.trap_of(call)
                if trap is not None:
                    # Calls of one connection may be under way together; replies keep their order.
                    await self._is_paid.wait()
                if trap is not None and trap.answer:
                    self._writer.write(f"-{trap.answer}\r\n".encode())
                    trap.close()
                    continue
                if trap is not None and trap.moment is Moment.NEVER:
                    trap.close()
                    return
                if trap is not None and trap.moment is Moment.HELD:
                    trap.close()
                    await trap.opened()
                    trap = None
                self._trap = trap or self._trap
                self._owe(1)
                self._server_writer.write(hiredis.pack_command(tuple(call)))
            await self._server_writer.drain()

    async def carry_replies(self) -> None:
        """Forward replies; a call with a trap is sent alone, so the next bytes answer it."""
        parser = hiredis.Reader()
        with contextlib.suppress(OSError):
            while data := await self._server_reader.read(_READ_BYTES):
                await self._proxy.flows()
                parser.feed(data)
                while parser.gets() is not False:
                    # What a channel says answers no call.
                    self._owe(-1)
                trap, self._trap = self._trap, None
                if trap is not None and trap.moment is Moment.LOST:
                    trap.close()
                    break
                self._writer.write(data)
                await self._writer.drain()
                if trap is not None:
                    trap.close()
        self._is_paid.set()
        self._writer.transport.abort()

    def _owe(self, more: int) -> None:
        self._num_owed = max(0, self._num_owed + more)
        if self._num_owed:
            self._is_paid.clear()
        else:
            self._is_paid.set()
