"""Processes of xdist, forked from one Python that has imported what the tests import.

Each would import torch, transformers and the packages for itself, for about fifteen seconds of CPU
time. The stem does it once, while the CPU's kernels compile on another core, and has neither run a
test nor read a `conftest.py` when a process is forked from it.
"""

from __future__ import annotations

import ast
import gc
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from execnet import gateway_base, gateway_io

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SUPPORT = Path(__file__).resolve().parent
# Where imports at the head of a module end.
_HEAD_ENDS = re.compile(r"^(?:@|(?:def|async|class|if|with|for) |\w+(?:: .+)? = )", re.MULTILINE)
_NUMBER = struct.Struct("i")
_REQUEST = b"fork"
_START = "import sys; sys.path.insert(0, {!r}); from run_stem import main; main(sys.argv[1:])"


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
        command = [sys.executable, "-u", "-c", _START.format(str(SUPPORT)), str(theirs.fileno())]
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

    It imports what the files, and those in the folders, import at their heads.
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
    line, paths = socket.socket(fileno=int(args[0])), [*map(Path, args[1:])]
    # Ctrl-C reaches the whole terminal group: whoever started the stem ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _compile_kernels(line)
    gc.disable()
    # Plugins are imported by pytest, which rewrites them, and whines where others were first.
    pytest.main(["--noconftest", "-s"], plugins=[_Importer(paths)])
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
    from tokenbus.engine.cache_folder import cache_folder
    from tokenbus.kernels.cpu.compile import compiled_library

    try:
        # A test that needs them says what is wrong.
        with suppress(Exception):
            compiled_library(cache_folder() / "kernels")
    finally:
        os._exit(0)


class _Importer:
    """A plugin that imports in place of a run."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = paths

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self) -> int:
        """Execute the imports of all files; one that fails is left to its test."""
        for statement in imports_of(self._paths):
            with suppress(Exception):
                exec(ast.unparse(statement), {})  # noqa: S102 -- an import
        return 0


def imports_of(paths: Iterable[Path]) -> list[ast.Import | ast.ImportFrom]:
    """Return what files of tests import at their heads, by way of the tests' own modules too."""
    todo = [file for path in paths for file in _files(path)]
    seen, found = set(todo), dict[str, ast.Import | ast.ImportFrom]()
    for file in todo:
        for node in _head(file.read_text()):
            own = {*_own_modules(node)}
            todo += own - seen
            seen |= own
            if not own:
                found.setdefault(ast.unparse(node), node)
    return [*found.values()]


def _head(source: str) -> list[ast.Import | ast.ImportFrom]:
    """Return the imports at the head of a module, the rest of which is not worth a parse."""
    end = _HEAD_ENDS.search(source)
    try:
        tree = ast.parse(source[: end.start()] if end else source)
    except SyntaxError:
        # Its docstring has a line like those that end a head.
        tree = ast.parse(source)
    return [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]


def _files(path: Path) -> Iterator[Path]:
    """List the files of tests at a path, and those that pytest reads with them."""
    if path.is_dir():
        yield from (file for file in path.rglob("*.py") if SUPPORT not in file.parents)
    elif path.is_file():
        yield path
    for folder in path.resolve().parents:
        if folder in SUPPORT.parents and (folder / "conftest.py").exists():
            yield folder / "conftest.py"


def _own_modules(node: ast.Import | ast.ImportFrom) -> Iterator[Path]:
    """List the files of the tests' own modules that a statement imports."""
    names = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        names = [node.module or "", *(f"{node.module}.{name}" for name in names)]
    for name in names:
        file = SUPPORT.joinpath(*name.split(".")).with_suffix(".py")
        if file.exists():
            yield file
