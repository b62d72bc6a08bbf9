"""Child processes that must not outlive the worker: how they start and notice its end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from tokenbus.worker.process.env import compute_env

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tokenbus.worker.process.child_output import ChildOutput

P = TypeVar("P", bound=asyncio.Protocol)

_PR_SET_PDEATHSIG = 1
_SOCKET_BYTES = 4 << 20


async def spawn(
    module: str, make_protocol: Callable[[], P], output: ChildOutput | None = None
) -> tuple[asyncio.subprocess.Process, asyncio.Transport]:
    """Run `python -m module FD PARENT_PID` with one end of a socket pair; keep the other.

    What it prints goes to `output`; without one, where this process prints.
    """
    printed = None if output is None else output.child_end
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    for end in (ours, theirs):
        # The kernel gives what it may, at least twice its default.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
    with theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            module,
            str(theirs.fileno()),
            str(os.getpid()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            env=compute_env(),
            pass_fds=(theirs.fileno(),),
            process_group=0,
        )
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_unix_connection(make_protocol, sock=ours)
    return process, transport


def kill(child: asyncio.subprocess.Process | subprocess.Popen[bytes]) -> None:
    """Kill a child that may have ended, and leave its exit status to the loop that waits for it.

    `child.kill()` asks for the status first; the loop then finds none, warns, and takes it for 255.
    """
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)


def is_stopped(pid: int) -> bool:
    """Tell whether a signal has stopped a process, which then runs no thread; false in doubt."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    # The state follows the name, which may hold anything.
    return told.rpartition(")")[2].split()[:1] == ["T"]


def ignore_signals() -> None:
    """Leave Ctrl-C, which reaches the whole terminal group, and SIGTERM to the worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def leave(status: int) -> NoReturn:
    """End the process without tearing the interpreter down.

    Native libraries print what they find leaked there, and some hang or crash.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the parent's thread ends; elsewhere the socket's end does it.

    A parent that died before the call is noticed by its changed pid.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def die_with_socket(sock: socket.socket) -> None:
    """End the process when the peer hangs up, however busy its other threads are."""
    poll = select.poll()
    poll.register(sock, getattr(select, "POLLRDHUP", 0))
    poll.poll()
    os._exit(0)
