"""A worker's first engine process, forked before it is asked for.

Of a case's CPU time most went into importing torch and transformers in every engine. A stem is
forked from the worker before that has threads, with everything imported, and waits. When the worker
spawns its engine, the stem becomes it: a child of the worker's main thread with the same end of a
socket pair as one that is executed. Later engines of the worker are executed as ever.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

from tokenbus.worker.engine import link
from tokenbus.worker.engine import process as engine_process
from tokenbus.worker.process import child

if TYPE_CHECKING:
    from collections.abc import Callable

# What an engine of a Llama imports.
IMPORTS = [
    "tokenbus.engine.build",
    "tokenbus.engine.weights.checkpoint",
    "transformers.activations",
    "transformers.models.llama.configuration_llama",
]
# By this name the process is known to /proc, since its command line is that of whom it was forked.
COMM = b"engine.process"
_PR_SET_NAME = 15


@dataclass(slots=True)
class StemProcess:
    """As much of asyncio's process as a worker uses of its engine's."""

    pid: int
    returncode: int | None = None

    def kill(self) -> None:
        """Kill it."""
        os.kill(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for its end and return the exit status, negative after a signal."""
        if self.returncode is None:
            loop, ended = asyncio.get_running_loop(), asyncio.Event()
            handle = os.pidfd_open(self.pid)
            loop.add_reader(handle, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(handle)
                os.close(handle)
            if self.returncode is None:
                _, status = os.waitpid(self.pid, 0)  # noqa: ASYNC222 -- it has ended
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def plant() -> None:
    """Fork this process's first engine; the next spawn of one finds it. Call it without threads."""
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _grow(theirs, parent)
    theirs.close()
    stems = [(StemProcess(pid), ours)]
    execute = child.spawn

    async def spawn(
        module: str, make_protocol: Callable[[], Any], output: Any = None
    ) -> tuple[Any, Any]:
        if not stems or module != engine_process.__name__:
            return await execute(module, make_protocol, output)
        process, line = stems.pop()
        kept, given = socket.socketpair()
        kept.setblocking(False)
        with line, given:
            socket.send_fds(line, [b"grow"], [given.fileno()])
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_unix_connection(make_protocol, sock=kept)
        return process, transport

    mock.patch.object(link, "spawn", spawn).start()


def _grow(line: socket.socket, parent: int) -> None:
    """Wait to become an engine, and be it to the end."""
    os.setpgid(0, 0)
    child.die_with_parent(parent)
    ctypes.CDLL(None).prctl(_PR_SET_NAME, COMM, 0, 0, 0)
    _, handles, _, _ = socket.recv_fds(line, 16, 1)
    line.close()
    os._exit(engine_process.main([str(handles[0]), str(parent)]) if handles else 0)
