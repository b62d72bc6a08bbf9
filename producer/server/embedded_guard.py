"""The guard of one embedded server: its parent, its restart, and its end after the last client.

Run as `python -m tokenbus.producer.server.embedded_guard BINARY FOLDER SOCKET [--private]`. It
leaves into the background once the server answers; exit code 0 means that it does, else standard
error says in its last line why not.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tokenbus.producer.server.embedded import START_TIMEOUT_S, answers

_POLL_S = 0.1
_STOP_TIMEOUT_S = 10.0
# A server that died is started again, at most this often in a row within a minute.
_MAX_RESTARTS = 5
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Guarded:
    """What to run and where."""

    binary: str
    folder: Path
    socket_path: Path
    private: bool

    def command(self) -> list[str]:
        """Return the server's command line: no TCP port, nothing evicted, AOF where data stays."""
        return [
            self.binary,
            *("--port", "0"),
            *("--unixsocket", str(self.socket_path)),
            *("--unixsocketperm", "700"),
            *("--dir", str(self.folder)),
            *("--save", ""),
            *("--appendonly", "no" if self.private else "yes"),
            *("--appendfsync", "everysec"),
            *("--maxmemory-policy", "noeviction"),
            *("--daemonize", "no"),
            *("--logfile", str(self.folder / "server.log")),
        ]


def start_server(guarded: Guarded) -> subprocess.Popen[bytes]:
    """Start the server as a child that is told to stop should the guard die."""
    guarded.socket_path.unlink(missing_ok=True)
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def die_with_guard() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    # The guard has one thread, so running code between fork and exec is safe here.
    return subprocess.Popen(
        guarded.command(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=guarded.folder,
        preexec_fn=die_with_guard,
    )


def wait_ready(guarded: Guarded, server: subprocess.Popen[bytes]) -> str | None:
    """Wait until the server answers; return why it does not, None if it does."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            log = guarded.folder / "server.log"
            lines = log.read_text(errors="replace").splitlines() if log.exists() else []
            return f"exit code {server.returncode}: {lines[-1] if lines else 'no log'}"
        if answers(guarded.socket_path):
            return None
        time.sleep(_POLL_S / 5)
    return f"no answer within {START_TIMEOUT_S:.0f} s"


def guard(guarded: Guarded, server: subprocess.Popen[bytes]) -> None:
    """Keep the server running until no client is left, then stop it."""
    restarts: list[float] = []
    with (guarded.folder / "clients.lock").open("ab") as clients:
        while True:
            try:
                fcntl.flock(clients, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_POLL_S)
            if server.poll() is not None:
                now = time.monotonic()
                restarts = [at for at in restarts if now - at < 60] + [now]
                if len(restarts) > _MAX_RESTARTS:
                    return
                server = start_server(guarded)
        stop_server(server)
        guarded.socket_path.unlink(missing_ok=True)
        if guarded.private:
            shutil.rmtree(guarded.folder, ignore_errors=True)


def stop_server(server: subprocess.Popen[bytes]) -> None:
    """Stop the server so that it writes what it has; SIGKILL if it does not go."""
    server.terminate()
    try:
        server.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def main(argv: list[str]) -> int:
    """Start the server, report, and go on in the background."""
    guarded = Guarded(argv[0], Path(argv[1]), Path(argv[2]), "--private" in argv[3:])
    reader, writer = os.pipe()
    if os.fork() > 0:
        os.close(writer)
        with os.fdopen(reader) as report:
            message = report.read()
        if message != "ready":
            print(message or "the guard died", file=sys.stderr)
            return 1
        return 0
    os.close(reader)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.chdir(guarded.folder)
    server = start_server(guarded)
    problem = wait_ready(guarded, server)
    with os.fdopen(writer, "w") as report:
        report.write(problem or "ready")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    if problem is not None:
        stop_server(server)
        return 1
    guard(guarded, server)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
