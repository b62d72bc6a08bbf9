"""The guard of one embedded server: its parent, its restart, and its end after the last client.

Run as `python -m tokenbus.producer.server.embedded_guard BINARY FOLDER FD,LOCK,LOCK [--private]`
with the opened folder and its guard lock as inherited descriptors; FOLDER is for `ps`. It leaves
into the background once the server answers; exit code 0 means that it does, else standard error
says in its last line why not.

The server runs inside the folder and is told relative names, which work whatever the folder is
called. It inherits the guard lock, so that no other starts while it lives, and ends with the guard.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tokenbus.producer.errors import EmbeddedUnavailable
from tokenbus.producer.server.guarded.data_folder import (
    SOCKET,
    SPARE_SOCKET,
    DataFolder,
    try_lock,
    unlock,
)
from tokenbus.producer.server.guarded.server_process import (
    Guarded,
    answers,
    start_server,
    stop_server,
    sync_aof,
    wait_ready,
)

_POLL_S = 0.1
_SYNC_S = 1.0
# A server listens some milliseconds after its start, before it loads its data. Past the second
# limit its socket must have been deleted before it was seen.
_LISTEN_S = 1.0
_LATE_S = 5.0
# A server that does not start, because the disk is full for instance, is tried again after pauses
# that double up to this.
_MAX_PAUSE_S = 5.0


@dataclass(slots=True)
class _Guard:
    """Keeps one server running and reachable, by looking at it ten times a second."""

    binary: str
    folder: DataFolder
    guard_lock: list[int]
    is_private: bool
    _server: subprocess.Popen[bytes] | None = None
    # The socket of the running server, once it was seen; None before.
    _socket: tuple[int, int] | None = None
    _has_answered: bool = False
    _is_asked_to_stop: bool = False
    _started_at: float = 0.0
    _pause_s: float = 0.0
    _synced_at: float = 0.0
    _clients: list[int] = field(default_factory=list)

    def guarded(self) -> Guarded:
        """Return what to run, seen from inside the folder."""
        return Guarded(self.binary, Path(), self.is_private, tuple(self.guard_lock))

    def start(self) -> str | None:
        """Start the server and wait until it answers; return why it does not, None if it does."""
        try:
            pid = self.folder.listener()
            if pid is not None:
                return f"process {pid} listens there without the folder's lock; end that first"
            self.folder.make_files_private()
            server = self._start()
        except (EmbeddedUnavailable, OSError, subprocess.SubprocessError) as error:
            return str(error)
        problem = wait_ready(self.guarded(), server)
        if problem is not None:
            stop_server(server)
            if shutil.disk_usage(".").free == 0:
                problem += "; the disk is full"
        return problem

    def run(self) -> None:
        """Keep the server until no client is left or the folder is deleted, then stop it."""
        while not self._is_deserted() and not self.folder.is_deleted:
            # A disk that is full is no reason to leave the server alone.
            with contextlib.suppress(OSError):
                self.folder.renew_guard_lock(self.guard_lock)
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                self._look_after_server()
            with contextlib.suppress(OSError):
                self._sync()
            time.sleep(_POLL_S)
        if self._server is not None:
            stop_server(self._server)
        os.ftruncate(self.guard_lock[-1], 0)
        for name in (SOCKET, SPARE_SOCKET):
            Path(name).unlink(missing_ok=True)

    def _start(self) -> subprocess.Popen[bytes]:
        self._socket = None
        self._has_answered = self._is_asked_to_stop = False
        self._started_at = time.monotonic()
        self._server = start_server(self.guarded())
        self._tell(self._server.pid)
        # Seen at once, the socket gets its second name before anybody deletes the first.
        deadline = self._started_at + _LISTEN_S
        while self._socket is None and self._server.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL_S / 50)
            self._look_after_socket()
        return self._server

    def _tell(self, server_pid: int) -> None:
        """Write into the lock who holds it, as far as the disk has room."""
        told = {
            "pid": os.getpid(),
            "server_pid": server_pid,
            "socket": os.fspath(self.folder.path / SOCKET),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        with contextlib.suppress(OSError):
            os.ftruncate(self.guard_lock[-1], 0)
            os.pwrite(self.guard_lock[-1], f"{json.dumps(told)}\n".encode(), 0)

    def _is_deserted(self) -> bool:
        """Tell whether no client holds a lock, which none gets any more once this is true.

        Clients lock what lies at the name when they come: each such file is kept in view.
        """
        current = self.folder.clients_lock()
        if current is not None:
            known = {os.fstat(fd).st_ino for fd in self._clients}
            if os.fstat(current).st_ino in known:
                os.close(current)
            else:
                self._clients.append(current)
        locked = [fd for fd in self._clients if try_lock(fd)]
        if len(locked) == len(self._clients):
            return True
        for fd in locked:
            unlock(fd)
        return False

    def _look_after_server(self) -> None:
        """Start the server again if it died, at once if it had run, and keep its socket there."""
        if self._server is None or self._server.poll() is not None:
            has_run = self._has_answered or self._is_asked_to_stop
            died_at_start = self._server is not None and not has_run
            if died_at_start and time.monotonic() - self._started_at < self._pause_s:
                return
            self._pause_s = min(2 * self._pause_s + _POLL_S, _MAX_PAUSE_S) if died_at_start else 0.0
            self._start()
            return
        if not self._has_answered:
            self._has_answered = answers(Path(SOCKET), _POLL_S)
        self._look_after_socket()

    def _look_after_socket(self) -> None:
        """Restore the socket's name if it was deleted or taken; restart the server if none is left.

        The server ends in order and starts with all that it had; it may be busy until then.
        """
        here, spare = self.folder.inode(SOCKET), self.folder.inode(SPARE_SOCKET)
        if self._socket is None and here is None:
            if time.monotonic() > self._started_at + _LATE_S:
                self._stop_for_another()
        elif self._socket in (None, here) and spare != here:
            self._socket = here
            Path(SPARE_SOCKET).unlink(missing_ok=True)
            # A file system without hard links has no spare.
            with contextlib.suppress(OSError):
                os.link(SOCKET, SPARE_SOCKET)
        elif here != self._socket and spare == self._socket:
            Path(SOCKET).unlink(missing_ok=True)
            os.link(SPARE_SOCKET, SOCKET)
        elif here != self._socket:
            self._stop_for_another()

    def _sync(self) -> None:
        """Bring to the disk what the server has written, once a second."""
        if not self.is_private and time.monotonic() > self._synced_at + _SYNC_S:
            self._synced_at = time.monotonic()
            sync_aof(Path())

    def _stop_for_another(self) -> None:
        if self._server is not None and not self._is_asked_to_stop:
            self._server.terminate()
            self._is_asked_to_stop = True


def main(argv: list[str]) -> int:
    """Start the server, report, and go on in the background."""
    fd, *guard_lock = (int(text) for text in argv[2].split(","))
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
    os.fchdir(fd)
    os.umask(0o077)
    guard = _Guard(argv[0], DataFolder(Path(argv[1]), fd), guard_lock, "--private" in argv[3:])
    problem = guard.start()
    with os.fdopen(writer, "w") as report:
        report.write(problem or "ready")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    if problem is not None:
        return 1
    guard.run()
    if guard.is_private:
        shutil.rmtree(argv[1], ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
