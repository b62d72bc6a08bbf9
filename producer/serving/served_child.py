"""A child process that runs a command of tokenbus, heard line by line."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from queue import SimpleQueue

_MODULE = "tokenbus.producer.commands.leashed"
# What a child has printed is read by then, unless a process of its own keeps its output open.
_LAST_LINES_S = 2.0


@dataclass(frozen=True, slots=True)
class ChildCommand:
    """What a child runs: the words of a command of tokenbus.

    `environment` goes before that of the supervisor. `cores` are those that it may run on, all
    where none are named. Children of one `part` do the same work, each beside the others.
    """

    words: tuple[str, ...]
    part: str
    environment: Mapping[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ChildSaid:
    """A line that a child printed, without its end."""

    name: str
    line: str


@dataclass(frozen=True, slots=True)
class ChildEnded:
    """The end of a child: its exit code, negative for a signal, and how long it ran."""

    name: str
    code: int
    ran_s: float


class ServedChild:
    """One command in a process and a process group of its own; it may be started again.

    What it prints and its end go to `events`. Ctrl-C of the terminal does not reach it, and it ends
    when this process does, however that ends.
    """

    def __init__(
        self,
        name: str,
        command: ChildCommand,
        environment: Mapping[str, str],
        events: SimpleQueue[object],
    ) -> None:
        self.name = name
        self.part = command.part
        self._command = command
        self._environment = {**environment, **command.environment}
        self._events = events
        self._process: subprocess.Popen[str] | None = None
        self._leash: int | None = None

    @property
    def is_running(self) -> bool:
        """Tell whether there is a process whose end was not taken notice of."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the command. Raises: OSError."""
        self.let_go()
        cores = ",".join(map(str, self._command.cores))
        ours, self._leash = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, str(ours), cores, *self._command.words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment,
                text=True,
                errors="replace",
                pass_fds=(ours,),
                process_group=0,
            )
        finally:
            os.close(ours)
        threading.Thread(
            target=self._hear, args=(self._process,), name=f"hear-{self.name}", daemon=True
        ).start()

    def send(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def let_go(self) -> None:
        """Drop the leash: a process that still runs stops. Safe to repeat."""
        leash, self._leash = self._leash, None
        if leash is not None:
            os.close(leash)

    def _hear(self, process: subprocess.Popen[str]) -> None:
        """Pass on what the process prints, then its end."""
        began_at = time.monotonic()
        reading = threading.Thread(target=self._read, args=(process,), daemon=True)
        reading.start()
        code = process.wait()
        ran_s = time.monotonic() - began_at
        reading.join(_LAST_LINES_S)
        self._events.put(ChildEnded(self.name, code, ran_s))

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._events.put(ChildSaid(self.name, line.rstrip("\n")))
