"""The process of an embedded server: its command line, its start and its end."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenbus.producer.server.guarded.data_folder import LOG, SOCKET, SPARE_SOCKET

if TYPE_CHECKING:
    from pathlib import Path

START_TIMEOUT_S = 30.0
# A file that cannot be read ends the server while it loads, at its beginning most of the time; one
# that takes longer is waited for by the clients.
LOADING_WAIT_S = 10.0
_POLL_S = 0.02
_STOP_TIMEOUT_S = 10.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Guarded:
    """What to run and where; the server inherits `guard_lock`."""

    binary: str
    folder: Path
    private: bool = False
    guard_lock: tuple[int, ...] = ()

    @property
    def socket_path(self) -> Path:
        """Return where the server listens."""
        return self.folder / SOCKET

    def command(self) -> list[str]:
        """Return the server's command line: no TCP port, nothing evicted, AOF where data stays.

        The guard syncs the AOF once a second. Under `everysec` the server answers before it writes
        while a sync of its own takes long, and who kills it then takes accepted jobs along.
        """
        return [
            self.binary,
            *("--port", "0"),
            *("--unixsocket", SOCKET),
            *("--unixsocketperm", "700"),
            *("--dir", "."),
            *("--save", ""),
            *("--appendonly", "no" if self.private else "yes"),
            *("--appendfsync", "no"),
            *("--maxmemory-policy", "noeviction"),
            *("--daemonize", "no"),
            *("--logfile", LOG),
        ]


def start_server(guarded: Guarded) -> subprocess.Popen[bytes]:
    """Start the server as a child that is told to stop should the guard die."""
    for name in (SOCKET, SPARE_SOCKET):
        (guarded.folder / name).unlink(missing_ok=True)
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    guard_pid = os.getpid()

    def die_with_guard() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != guard_pid:
                os._exit(1)

    # The guard has one thread, so running code between fork and exec is safe here.
    return subprocess.Popen(
        guarded.command(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=guarded.folder,
        preexec_fn=die_with_guard,
        pass_fds=guarded.guard_lock,
    )


def answers(socket_path: Path, timeout_s: float = 1.0) -> bool:
    """Tell whether a server answers on the socket; an error (LOADING, MISCONF) is an answer."""
    return bool(_answer(socket_path, timeout_s))


def _answer(socket_path: Path, timeout_s: float) -> bytes:
    """Return what the server says to a PING, nothing where there is none."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(timeout_s)
            probe.connect(str(socket_path))
            probe.sendall(b"PING\r\n")
            return probe.recv(64)
    except OSError:
        return b""


def wait_ready(guarded: Guarded, server: subprocess.Popen[bytes]) -> str | None:
    """Wait until the server answers; return why it does not, None if it does."""
    began = time.monotonic()
    deadline = began + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            return f"exit code {server.returncode}: {_last_word(guarded.folder)}"
        said = _answer(guarded.socket_path, 1.0)
        is_loading = said.startswith(b"-LOADING")
        if said and (not is_loading or time.monotonic() > began + LOADING_WAIT_S):
            return None
        time.sleep(_POLL_S)
    return f"no answer within {START_TIMEOUT_S:.0f} s"


def _last_word(folder: Path) -> str:
    """Return the last line of the server's log, which may end with blank ones."""
    log = folder / LOG
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    said = next((line.strip() for line in reversed(lines) if line.strip()), "no log")
    return f"{said} (see {LOG} there)"


def stop_server(server: subprocess.Popen[bytes]) -> None:
    """Stop the server so that it writes what it has; SIGKILL if it does not go."""
    server.terminate()
    try:
        server.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def sync_aof(folder: Path) -> None:
    """Bring the part of the append-only file that grows to the disk. Raises: OSError."""
    for path in (folder / "appendonlydir").glob("*.incr.aof"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
