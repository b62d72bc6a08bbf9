"""A worker's first engine processes, and its publishers, forked before they are asked for.

Of a case's CPU time most went into what each child imports: torch and transformers in an engine.
Stems are forked from the worker before that has threads, with everything imported, and wait. When
the worker spawns a child, a stem becomes it: a child of the worker's main thread with the same end
of a socket pair as one that is executed. Later ones of the worker are executed as ever.
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
from tokenbus.worker.publishing import links, publisher_process

if TYPE_CHECKING:
    from collections.abc import Callable

# What an engine of a Llama imports.
IMPORTS = [
    "tokenbus.engine.build",
    "tokenbus.engine.weights.checkpoint",
    "transformers.activations",
    "transformers.models.llama.configuration_llama",
]
# By these names processes are known to /proc, since their command line is that of whom they were
# forked from. It keeps fifteen letters.
COMMS = {engine_process.__name__: b"engine.process", publisher_process.__name__: b"publisher_proc"}
_PR_SET_NAME = 15
# One that starts, and those that take its place in a case that kills it.
_NUM_ENGINES = 3


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


def plant(num_publishers: int) -> None:
    """Fork this process's first engines and its publishers; spawns of them find them.

    Call it without threads.
    """
    names = [engine_process.__name__] * _NUM_ENGINES
    names += [publisher_process.__name__] * num_publishers
    stems = [(name, *_planted(name)) for name in names]
    execute = child.spawn

    async def spawn(
        module: str, make_protocol: Callable[[], Any], output: Any = None
    ) -> tuple[Any, Any]:
        found = next((stem for stem in stems if stem[0] == module), None)
        if found is None:
            return await execute(module, make_protocol, output)
        stems.remove(found)
        _, process, line = found
        kept, given = socket.socketpair()
        kept.setblocking(False)
        with line, given:
            socket.send_fds(line, [b"grow"], [given.fileno()])
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_unix_connection(make_protocol, sock=kept)
        return process, transport

    mock.patch.object(link, "spawn", spawn).start()
    mock.patch.object(links, "spawn", spawn).start()


def _planted(module: str) -> tuple[StemProcess, socket.socket]:
    """Fork a process that waits to become a child."""
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _grow(module, theirs, parent)
    theirs.close()
    return StemProcess(pid), ours


def _grow(module: str, line: socket.socket, parent: int) -> None:
    """Wait to become an engine or a publisher, and be it to the end."""
    os.setpgid(0, 0)
    child.die_with_parent(parent)
    _, handles, _, _ = socket.recv_fds(line, 16, 1)
    ctypes.CDLL(None).prctl(_PR_SET_NAME, COMMS[module], 0, 0, 0)
    line.close()
    main = engine_process.main if module == engine_process.__name__ else publisher_process.main
    os._exit(main([str(handles[0]), str(parent)]) if handles else 0)
