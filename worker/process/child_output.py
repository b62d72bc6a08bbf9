"""Output of a child process, taken line by line: it never mixes with the lines of our log."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_READ_BYTES = 1 << 16
DEFAULT_LINE_BYTES = 4096


class ChildOutput:
    """A pipe for the standard output and error of a child; every line is told on the event loop.

    The child's end is `child_end` until `began`. Grandchildren may hold theirs for longer. A line
    of more than `max_line_bytes` is told in pieces.
    """

    def __init__(
        self, say: Callable[[str], None], max_line_bytes: int = DEFAULT_LINE_BYTES
    ) -> None:
        self._say = say
        self._max_line_bytes = max_line_bytes
        self._rest = b""
        self._own_end, self.child_end = os.pipe()
        os.set_blocking(self._own_end, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._own_end, self._read)
        self._is_open = True

    def began(self) -> None:
        """Let go of the child's end, which the child has now."""
        os.close(self.child_end)

    def close(self) -> None:
        """Tell what is left and read no more. Safe to repeat."""
        if not self._is_open:
            return
        self._read()
        if self._is_open:
            self._end()

    def _read(self) -> None:
        while self._is_open:
            try:
                chunk = os.read(self._own_end, _READ_BYTES)
            except BlockingIOError:
                return
            if not chunk:
                self._end()
                return
            *lines, self._rest = (self._rest + chunk).replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                self._tell(line)
            while len(self._rest) > self._max_line_bytes:
                self._tell(self._rest[: self._max_line_bytes])
                self._rest = self._rest[self._max_line_bytes :]

    def _end(self) -> None:
        self._is_open = False
        self._loop.remove_reader(self._own_end)
        os.close(self._own_end)
        self._tell(self._rest)
        self._rest = b""

    def _tell(self, line: bytes) -> None:
        for start in range(0, len(line), self._max_line_bytes):
            text = line[start : start + self._max_line_bytes].decode(errors="replace").rstrip()
            if text:
                self._say(text)
