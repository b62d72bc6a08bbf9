"""The data folder of an embedded server: whose it is, who guards it, and how its socket is reached.

`clients.lock` carries a shared lock of every client. An exclusive lock on the folder itself and on
`guard.lock` belongs to the guard and, inherited, to its server: it is free once both are gone, and
who gets it starts the next ones. The folder is locked too because files may be deleted under their
lock, by who cleans temporary folders for instance; some network file systems lock only files.

Everything here goes by the opened folder, so that neither its name nor a change of it matters.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import shutil
import socket
import stat
import struct
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenbus.producer.errors import EmbeddedUnavailable
from tokenbus.producer.server.guarded.folder_owner import (
    is_rooted,
    make_private,
    refuse_foreign,
    refuse_foreign_links,
    refuse_others,
    shown,
    user_name,
)
from tokenbus.producer.server.guarded.unforked import close_unforked, open_unforked

CLIENTS_LOCK = "clients.lock"
GUARD_LOCK = "guard.lock"
SOCKET = "server.sock"
# A second name of the socket, from which the first is restored.
SPARE_SOCKET = "server.sock.spare"
LOG = "server.log"
_AOF = "appendonlydir"
# What lies in a folder that nobody uses for anything else; `start.lock` is of an earlier state.
_OWN_NAMES = {CLIENTS_LOCK, GUARD_LOCK, SOCKET, SPARE_SOCKET, LOG, _AOF, "start.lock"}
# A Unix socket's path is limited to 107 bytes on Linux, 103 on macOS.
MAX_SOCKET_PATH_BYTES = 100
_CONNECT_TIMEOUT_S = 1.0
_POLL_S = 0.02
# What file systems answer that lock no folders.
_UNLOCKABLE = {errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}


@dataclass(slots=True)
class DataFolder:
    """An opened folder; `path` is for people and for short socket paths."""

    path: Path
    fd: int
    _alias: Path | None = field(default=None, repr=False)

    @classmethod
    def open(cls, path: Path) -> DataFolder:
        """Open a folder of this user's own, made with mode 0700 where there is none.

        Raises: EmbeddedUnavailable, if it is another user's or others may write in it; OSError.
        """
        _fcntl()
        try:
            path = path.expanduser().absolute()
            refuse_foreign_links(path)
            path = path.resolve()
            make_private(path)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except PermissionError:
            refuse_foreign(path)
            raise
        except (RuntimeError, ValueError) as error:
            raise EmbeddedUnavailable(f"embedded server in {shown(path)}: {error}") from None
        folder = cls(path, fd)
        try:
            folder._check()
        except BaseException:
            folder.close()
            raise
        return folder

    def _check(self) -> None:
        status = os.fstat(self.fd)
        refuse_others(self.path, status)
        if stat.S_IMODE(status.st_mode) & 0o077 and self._names() <= _OWN_NAMES:
            os.fchmod(self.fd, 0o700)

    def make_files_private(self) -> None:
        """Take the rights of others off the files that an earlier server left."""
        for name in _OWN_NAMES & self._names():
            self._close_to_others(name)
        if self.inode(_AOF) is not None:
            for name in self._names(_AOF):
                self._close_to_others(f"{_AOF}/{name}")

    def _names(self, folder: str = ".") -> set[str]:
        fd = self._open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(fd) as entries:
                return {entry.name for entry in entries}
        finally:
            os.close(fd)

    def _close_to_others(self, name: str) -> None:
        status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode) and stat.S_IMODE(status.st_mode) & 0o077:
            os.chmod(name, stat.S_IMODE(status.st_mode) & 0o700, dir_fd=self.fd)

    @property
    def is_deleted(self) -> bool:
        """Tell whether nothing can be written in the folder any more."""
        return os.fstat(self.fd).st_nlink == 0

    def hold(self, deadline: float) -> int:
        """Take a client's lock, past the end of a guard that is stopping its server.

        Returns: the descriptor, whose close lets the lock go. Raises: EmbeddedUnavailable at the
        monotonic time `deadline`; OSError.
        """
        while True:
            fd = self._open(CLIENTS_LOCK, os.O_RDWR | os.O_CREAT)
            if try_lock(fd, is_shared=True) and self.is_current(fd, CLIENTS_LOCK):
                return fd
            os.close(fd)
            if time.monotonic() > deadline:
                raise EmbeddedUnavailable(
                    f"embedded server in {shown(self.path)} is being stopped and does not end"
                    f" ({self.told() or 'its guard told nothing'})"
                )
            time.sleep(_POLL_S)

    def clients_lock(self) -> int | None:
        """Open the file that clients lock now; None if it was deleted."""
        with contextlib.suppress(FileNotFoundError):
            return self._open(CLIENTS_LOCK, os.O_RDWR)
        return None

    def take_guard_lock(self) -> list[int] | None:
        """Take the guard's lock if it is free, None otherwise.

        Returns: the descriptors that carry it, to be inherited by guard and server and closed by
        `close_unforked`; it is free once all copies are closed. Raises: OSError.
        """
        # Opened once more: a lock belongs to one opening, and `fd` stays with this process.
        fds = [open_unforked(lambda: self._open(".", os.O_RDONLY | os.O_DIRECTORY))]
        try:
            if not _try_lock_folder(fds[0]):
                raise BlockingIOError
            fds.append(open_unforked(lambda: self._open(GUARD_LOCK, os.O_RDWR | os.O_CREAT)))
            if not try_lock(fds[1]) or not self.is_current(fds[1], GUARD_LOCK):
                raise BlockingIOError
        except BlockingIOError:
            close_unforked(fds)
            return None
        except BaseException:
            close_unforked(fds)
            raise
        return fds

    def renew_guard_lock(self, guard_lock: list[int]) -> None:
        """Lock `guard.lock` again if it was deleted or replaced, and add its descriptor."""
        if self.is_current(guard_lock[-1], GUARD_LOCK):
            return
        fd = self._open(GUARD_LOCK, os.O_RDWR | os.O_CREAT)
        if try_lock(fd):
            guard_lock.append(fd)
        else:
            os.close(fd)

    def told(self) -> str:
        """Return what the guard wrote into its lock: pid, socket and start time; for people."""
        with contextlib.suppress(OSError):
            fd = self._open(GUARD_LOCK, os.O_RDONLY)
            try:
                return " ".join(os.pread(fd, 4096, 0).decode(errors="replace").split())
            finally:
                os.close(fd)
        return ""

    def is_current(self, fd: int, name: str) -> bool:
        """Tell whether a name still leads to what was opened under it."""
        opened, there = os.fstat(fd), self.inode(name)
        return there == (opened.st_dev, opened.st_ino)

    def inode(self, name: str) -> tuple[int, int] | None:
        """Return what identifies a file of the folder; None if there is none."""
        try:
            status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def listener(self) -> int | None:
        """Return the process that listens on the socket, 0 where it cannot be told; None if none.

        Whether it answers, and what, is another question. Raises: EmbeddedUnavailable, if it is
        another user's.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_CONNECT_TIMEOUT_S)
            try:
                probe.connect(str(self.socket_path()))
            except (BlockingIOError, TimeoutError):
                # A server that is so busy that its queue of connections is full.
                return 0
            except OSError:
                return None
            if not hasattr(socket, "SO_PEERCRED"):
                return 0
            told = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", told)
        if uid != os.geteuid():
            raise EmbeddedUnavailable(
                f"embedded server: what listens in {shown(self.path)} is of {user_name(uid)}, and"
                f" this process of {user_name(os.geteuid())}; nothing was sent to it"
            )
        return int(pid)

    def socket_path(self) -> Path:
        """Return a path of the socket for this process and its children, as long as it is open.

        It is that in the folder where this is short enough for a socket and nobody else can put
        another folder in its place; else it goes by the folder that this process has opened.
        """
        inside = self.path / SOCKET
        try:
            is_short = len(str(inside).encode()) <= MAX_SOCKET_PATH_BYTES
        except UnicodeEncodeError:
            is_short = False
        opened = Path(f"/proc/{os.getpid()}/fd/{self.fd}")
        if is_short and (is_rooted(self.path) or not opened.exists()):
            return inside
        if opened.exists():
            return opened / SOCKET
        if self._alias is None:
            self._alias = Path(tempfile.mkdtemp(prefix="tokenbus-"), "d")
            self._alias.symlink_to(self.path)
        return self._alias / SOCKET

    def close(self) -> None:
        """Let the folder go."""
        os.close(self.fd)
        if self._alias is not None:
            shutil.rmtree(self._alias.parent, ignore_errors=True)

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)


def try_lock(fd: int, *, is_shared: bool = False) -> bool:
    """Take a lock without waiting. Raises: EmbeddedUnavailable without locks of Unix; OSError."""
    fcntl = _fcntl()
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(fd: int) -> None:
    """Give a lock back; never one that was inherited, which would end for all."""
    _fcntl().flock(fd, _fcntl().LOCK_UN)


def _fcntl() -> Any:
    try:
        return importlib.import_module("fcntl")
    except ImportError:
        raise EmbeddedUnavailable("the embedded server needs file locks of Unix") from None


def _try_lock_folder(fd: int) -> bool:
    try:
        return try_lock(fd)
    except OSError as error:
        if error.errno in _UNLOCKABLE:
            return True
        raise
