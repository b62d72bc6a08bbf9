"""A server with an append-only file that can be killed, rolled back and started again."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenbus.producer.server.guarded.server_process import (
    Guarded,
    start_server,
    stop_server,
    wait_ready,
)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence


class MortalServer:
    """One server process on a Unix socket, run with the options of the embedded server.

    Further options go to the server's command line. Not running before `start`.
    """

    def __init__(self, binary: str, options: Sequence[str] = ()) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="tb-mortal-")
        self._folder = Path(self._temporary.name)
        self._guarded = _Configured(binary, self._folder, options=tuple(options))
        self.socket_path = self._guarded.socket_path
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return its address."""
        return f"unix://{self.socket_path}"

    async def start(self) -> None:
        """Start the server and wait until it answers."""
        self._process = start_server(self._guarded)
        problem = await asyncio.to_thread(wait_ready, self._guarded, self._process)
        if problem is not None:
            raise RuntimeError(f"the server did not start: {problem}")

    def kill(self) -> None:
        """Kill the process; what it wrote to the file stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End the server and delete its data."""
        if self._process is not None and self._process.poll() is None:
            stop_server(self._process)
        self._temporary.cleanup()

    def file_size(self) -> int:
        """Return the bytes of the append-only file, a mark for `roll_back`."""
        return self._file().stat().st_size

    def roll_back(self, mark: int) -> int:
        """Cut everything off the file of a dead server that was written after `mark`.

        The cut is made at the border of a command or of a script's transaction, as a server that
        loads a file which a power cut has torn does. Returns: the number of bytes lost.
        """
        path = self._file()
        data = path.read_bytes()
        border = last_border(data, mark)
        with path.open("r+b") as file:
            file.truncate(border)
        return len(data) - border

    def _file(self) -> Path:
        [path] = (self._folder / "appendonlydir").glob("*.incr.aof")
        return path


@dataclass(frozen=True)
class _Configured(Guarded):
    """The embedded server's command line with further options."""

    options: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """Return the server's command line."""
        return [*super().command(), *self.options]


def last_border(data: bytes, limit: int) -> int:
    """Return the largest offset up to `limit` at which a whole command or transaction ends."""
    border = at = 0
    inside = False
    while at < len(data) and at <= limit:
        if not inside:
            border = at
        at, name = _skip_command(data, at)
        if name == b"MULTI":
            inside = True
        elif name == b"EXEC":
            inside = False
    return at if at <= limit and not inside else border


def _skip_command(data: bytes, at: int) -> tuple[int, bytes]:
    """Return the offset behind the command at `at`, and its name in capitals."""
    end = data.index(b"\r\n", at)
    if data[at : at + 1] != b"*":
        return end + 2, b"#"
    count, at, name = int(data[at + 1 : end]), end + 2, b""
    for number in range(count):
        end = data.index(b"\r\n", at)
        size = int(data[at + 1 : end])
        if number == 0:
            name = data[end + 2 : end + 2 + size].upper()
        at = end + 2 + size + 2
    return at, name
