"""The command `tokenbus` in processes that start fast, forked with everything imported.

A new interpreter takes a second or two of CPU time to import what a worker, a gateway or a control
service needs. How those start from a shell is shown by the tests of the installed command.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TextIO

from patience import PATIENCE_S
from workers.forkserver import FORKS, end_with_tests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess


def _run(
    main: Callable[[tuple[str, ...]], int],
    args: tuple[str, ...],
    environment: dict[str, str],
    streams: tuple[Connection, ...],
) -> None:
    """Be a command, with these arguments, variables and standard streams."""
    end_with_tests()
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    # Standard streams stay open to the end.
    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    try:
        code = main(args)
    finally:
        for written in (sys.stdout, sys.stderr):
            with contextlib.suppress(BrokenPipeError):
                written.flush()
    sys.exit(code)


def tokenbus(args: tuple[str, ...]) -> int:
    """Be the command `tokenbus`."""
    from tokenbus.producer.commands.cli import main

    return main(args)


@dataclass(frozen=True, slots=True)
class ForkedCommand:
    """A command that runs, and the other ends of its standard streams."""

    process: ForkServerProcess
    stdin: TextIO
    stdout: TextIO
    stderr: TextIO

    @classmethod
    def start(
        cls,
        *args: str,
        main: Callable[[tuple[str, ...]], int] = tokenbus,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> Self:
        """Start a command with arguments, and variables beside those of the tests."""
        theirs, ours = zip(Pipe(False), Pipe(False)[::-1], Pipe(False)[::-1], strict=True)
        variables = {**os.environ, **environment}
        process = FORKS.Process(target=_run, args=(main, args, variables, theirs), daemon=True)
        process.start()
        for stream in theirs:
            stream.close()
        opened: list[Any] = [
            os.fdopen(os.dup(stream.fileno()), mode)
            for stream, mode in zip(ours, ("w", "r", "r"), strict=True)
        ]
        for stream in ours:
            stream.close()
        return cls(process, *opened)

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it has not ended."""
        if self.returncode is None:
            # It may have ended, and been waited for, without having been asked about yet.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it as the kernel would."""
        self.send_signal(signal.SIGKILL)

    @property
    def pid(self) -> int:
        """Return its process id."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """Return its exit status, None while it runs."""
        return self.process.exitcode

    def join(self, timeout: float = PATIENCE_S) -> int:
        """Wait for its end and return the exit status, negative after a signal."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise TimeoutError(f"process {self.process.pid} did not end")
        return self.process.exitcode

    async def wait(self) -> int:
        """Wait for its end beside other tasks, and return the exit status."""
        return await asyncio.to_thread(self.join)

    def close(self) -> None:
        """Kill what is left of it, and let go of its streams."""
        self.kill()
        self.join()
        for stream in (self.stdin, self.stdout, self.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@contextmanager
def forked_command(
    *args: str,
    main: Callable[[tuple[str, ...]], int] = tokenbus,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[ForkedCommand]:
    """Run a command, `tokenbus` unless told else; it is killed at the end."""
    running = ForkedCommand.start(*args, main=main, environment=environment)
    try:
        yield running
    finally:
        running.close()


async def reader_of(stream: TextIO) -> asyncio.StreamReader:
    """Return a reader of a process's stream for a task."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    copy = os.fdopen(os.dup(stream.fileno()), "rb")
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), copy)
    return reader


def variables_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return settings as the variables that processes read."""
    return {f"TOKENBUS_{name.upper()}": str(value) for name, value in settings.items()}
