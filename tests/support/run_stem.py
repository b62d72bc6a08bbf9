"""Processes of xdist, forked from one Python that has imported the modules of the tests.

Each would import them for itself, with torch, transformers and the packages, for about twenty
seconds of CPU time. The stem does it once, while the CPU's kernels compile on another core; it has
neither run a test nor read a `conftest.py` when a process is forked from it. Where there is a CUDA
device it ends instead, and they import for themselves: a fork of who has looked at one has none.
"""

from __future__ import annotations

import gc
import io
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from contextlib import closing, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from execnet import gateway_base, gateway_io

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_SUPPORT = str(Path(__file__).resolve().parent)
_START = "import sys; sys.path.insert(0, {!r}); from run_stem import main; main(sys.argv[1:])"
_NUMBER = struct.Struct("i")
_REQUEST = b"fork"


class ForkedIO(gateway_base.Popen2IO):
    """The standard streams of a forked process, as execnet has them of one that it executed."""

    def __init__(self, pid: int, to_it: int, from_it: int, execmodel: Any) -> None:
        self.pid = pid
        self._ended = os.pidfd_open(pid)
        super().__init__(os.fdopen(to_it, "wb"), os.fdopen(from_it, "rb"), execmodel)

    def wait(self) -> None:
        """Wait for its end."""
        select.select([self._ended], [], [])

    def kill(self) -> None:
        """Kill it, if it has not ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._ended, signal.SIGKILL)


class Stem:
    """The process that others are forked from, as pytest's own process has it."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-uPc", _START.format(_SUPPORT), str(theirs.fileno())]
        with theirs:
            self.process = subprocess.Popen(
                [*command, *map(str, paths)], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )

    def fork(self, execmodel: Any) -> ForkedIO | None:
        """Fork a process, which waits for what execnet tells it; None if the stem has ended."""
        (stdin, to_it), (from_it, stdout) = os.pipe(), os.pipe()
        try:
            socket.send_fds(self._line, [_REQUEST], [stdin, stdout])
            told = self._line.recv(_NUMBER.size)
            if told:
                return ForkedIO(*_NUMBER.unpack(told), to_it, from_it, execmodel)
        except (BrokenPipeError, ConnectionResetError, ProcessLookupError):
            pass
        finally:
            os.close(stdin)
            os.close(stdout)
        os.close(to_it)
        os.close(from_it)
        return None

    def close(self) -> None:
        """End the stem, whatever it does; what was forked from it stays."""
        self._line.close()
        self.process.kill()
        self.process.wait()


@contextmanager
def planted(paths: Iterable[Path]) -> Iterator[Stem]:
    """Have processes of execnet without a Python of their own forked from a stem.

    It imports the modules of tests at the paths; one that cannot be imported is left to its tests.
    """
    execute: Callable[..., Any] = gateway_io.create_io
    with closing(Stem(paths)) as stem:

        def create(spec: Any, execmodel: Any) -> Any:
            forked = stem.fork(execmodel) if spec.popen and not spec.python else None
            return forked or execute(spec, execmodel)

        with mock.patch.object(gateway_io, "create_io", create):
            yield stem


def main(args: list[str]) -> None:
    """Be the stem, until pytest's own process hangs up, and a process that was forked from it."""
    line = socket.socket(fileno=int(args[0]))
    # Ctrl-C reaches the whole terminal group: whoever started the stem ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _compile_kernels(line)
    gc.disable()
    with redirect_stdout(io.StringIO()):
        options = ["-n0", "--noconftest", "--collect-only", "-s", "-pno:cacheprovider"]
        pytest.main([*options, *args[1:]], plugins=[_Importer()])
    if _has_cuda():
        os._exit(0)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, handles, _, _ = socket.recv_fds(line, len(_REQUEST), 2)
        if not request:
            os._exit(0)
        pid = os.fork()
        if pid == 0:
            line.close()
            _serve(*handles)
            return
        for handle in handles:
            os.close(handle)
        with suppress(BrokenPipeError):
            line.send(_NUMBER.pack(pid))


def _has_cuda() -> bool:
    """Tell whether the modules have a CUDA device, which may be in use since they were imported."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available())


def _serve(stdin: int, stdout: int) -> None:
    """Do what execnet's Python does, as `python -u -c` would."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, handle in enumerate((stdin, stdout)):
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin, sys.stdout = open(0), open(1, "w", buffering=1)  # noqa: SIM115
    sys.argv = ["-c"]
    # As is on the command line of execnet's.
    exec(eval(sys.stdin.readline()), vars(sys.modules["__main__"]))  # noqa: S102, S307


def _compile_kernels(line: socket.socket) -> None:
    """Begin to compile the CPU's kernels, unless they are there: who needs them waits for them."""
    if os.fork():
        return
    line.close()
    try:
        # A test that needs them says what is wrong.
        with suppress(Exception):
            from tokenbus.engine.cache_folder import cache_folder
            from tokenbus.kernels.cpu.compile import compiled_library

            compiled_library(cache_folder() / "kernels")
    finally:
        os._exit(0)


class _Importer:
    """A plugin for a collection that imports modules, and makes no tests of what is in them."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(self) -> list[pytest.Item]:
        """Find nothing in a module."""
        return []
