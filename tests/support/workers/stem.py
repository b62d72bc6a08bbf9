"""Children of workers beside a test, forked from a stem that has imported everything.

An engine that is executed imports torch and transformers for ten seconds of CPU time, a publisher
what it needs for one. The stem is forked from the process of the tests when these are collected:
it has all that their modules import, one thread, and no connection. How a child is executed is
shown by the tests of links, of whole processes and of the installed command.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import signal
import socket
import struct
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from unittest import mock

from tokenbus.worker.engine import link
from tokenbus.worker.process import child
from tokenbus.worker.process.env import compute_env
from tokenbus.worker.publishing import links

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenbus.worker.process.child_output import ChildOutput

_REQUEST_BYTES = 1 << 18
_NUMBER = struct.Struct("i")


@dataclass(slots=True)
class ForkedChild:
    """As much of asyncio's process as a worker uses of its children."""

    pid: int
    returncode: int | None = None
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    def kill(self) -> None:
        """Kill it."""
        child.kill(self)  # type: ignore[arg-type]

    async def wait(self) -> int:
        """Wait for its end and return the exit status, negative after a signal."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def watch(self, told: socket.socket) -> None:
        """Learn the exit status from whom forked it."""
        loop = asyncio.get_running_loop()

        def learn() -> None:
            loop.remove_reader(told)
            with told:
                [self.returncode] = _NUMBER.unpack(told.recv(_NUMBER.size))
            self._ended.set()

        loop.add_reader(told, learn)


class _Stem:
    line: socket.socket | None = None


def plant() -> None:
    """Fork the stem. Call it where nothing runs and nothing is connected."""
    if sys.platform != "linux" or _Stem.line is not None:
        return
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    if os.fork() == 0:
        try:
            ours.close()
            _serve(theirs, parent)
        finally:
            # Whatever was raised is not for the tests, whose copy this process is.
            os._exit(1)
    theirs.close()
    _Stem.line = ours


@contextmanager
def forked_children() -> Iterator[None]:
    """Let workers of this process have their children from the stem, where there is one."""
    if _Stem.line is None:
        yield
        return
    with mock.patch.object(link, "spawn", _spawn), mock.patch.object(links, "spawn", _spawn):
        yield


async def _spawn(
    module: str, make_protocol: Callable[[], Any], output: ChildOutput | None = None
) -> tuple[ForkedChild, asyncio.Transport]:
    """Do what `child.spawn` does, by a fork."""
    assert _Stem.line is not None
    ours, theirs = socket.socketpair()
    told, tells = socket.socketpair()
    ours.setblocking(False)
    request = {"module": module, "env": compute_env(), "folder": str(Path.cwd())}
    handles = [theirs.fileno(), tells.fileno()]
    if output is not None:
        handles.append(output.child_end)
    with theirs, tells:
        socket.send_fds(_Stem.line, [json.dumps(request).encode()], handles)
    loop = asyncio.get_running_loop()
    [pid] = _NUMBER.unpack(await asyncio.to_thread(told.recv, _NUMBER.size))
    told.setblocking(False)
    process = ForkedChild(pid)
    process.watch(told)
    transport, _ = await loop.create_unix_connection(make_protocol, sock=ours)
    return process, transport


def _serve(line: socket.socket, parent: int) -> NoReturn:
    """Fork a minder for each request, until the tests end."""
    child.ignore_signals()
    child.die_with_parent(parent)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # What a collection does not look at stays in the pages that all processes share.
    gc.freeze()
    own = os.getpid()
    while True:
        body, handles, _, _ = socket.recv_fds(line, _REQUEST_BYTES, 3)
        if not body:
            os._exit(0)
        if os.fork() == 0:
            _mind(json.loads(body), handles, own)
        for handle in handles:
            os.close(handle)


def _mind(request: dict[str, Any], handles: list[int], parent: int) -> NoReturn:
    """Fork a child, tell its process id, wait for its end and tell its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child.die_with_parent(parent)
    own = os.getpid()
    pid = os.fork()
    if pid == 0:
        _be(request, handles, own)
    tells = socket.socket(fileno=handles[1])
    for handle in (handles[0], *handles[2:]):
        os.close(handle)
    # A test may be over before its worker's child is.
    with suppress(BrokenPipeError):
        tells.send(_NUMBER.pack(pid))
        _, status = os.waitpid(pid, 0)
        tells.send(_NUMBER.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _be(request: dict[str, Any], handles: list[int], parent: int) -> NoReturn:
    """Be a child of a worker, with nothing open that one would not have that is executed."""
    os.setpgid(0, 0)
    for number in (1, 2) if len(handles) > 2 else ():
        os.dup2(handles[2], number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name in [path.name for path in Path("/proc/self/fd").iterdir()]:
        if int(name) > 2 and int(name) != handles[0]:
            # One of them was that of the list.
            _close(int(name))
    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["env"])
    status = 1
    try:
        status = importlib.import_module(request["module"]).main([str(handles[0]), str(parent)])
    finally:
        child.leave(status)


def _close(handle: int) -> None:
    try:
        os.close(handle)
    except OSError:
        return
