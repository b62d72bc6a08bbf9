"""The owner of a data folder: a folder is used only if nobody else can read or change it.

Prompts and answers lie in it in clear text, and who can write in it can put a server in its place.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import stat
from typing import TYPE_CHECKING, Any

from tokenbus.producer.errors import EmbeddedUnavailable

if TYPE_CHECKING:
    from pathlib import Path


def refuse_others(path: Path, status: os.stat_result) -> None:
    """Refuse a folder of another user, or one in which others may write.

    Raises: EmbeddedUnavailable with owner or mode and what to do.
    """
    if status.st_uid != os.geteuid():
        raise _foreign(path, status.st_uid)
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o022:
        raise EmbeddedUnavailable(
            f"embedded server: other users may write in the folder {shown(path)} (mode {mode:04o}),"
            " and so put a server of their own there; if all that is in it is yours, run chmod 700"
            f" {shlex.quote(str(path))}, else name another folder"
        )


def shown(path: Path) -> str:
    """Return a path as one line of text, whatever characters it has."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def make_private(path: Path) -> None:
    """Make a folder and those above it that lack, for this user alone."""
    try:
        path.mkdir(mode=0o700)
    except FileNotFoundError:
        make_private(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        return


def is_rooted(path: Path) -> bool:
    """Tell whether only root and this user can put something else in the place of a folder."""
    for above in path.parents:
        status = above.stat()
        is_open = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        if is_open or status.st_uid not in (0, os.geteuid()):
            return False
    return True


def refuse_foreign(path: Path) -> None:
    """Say whose a folder is that may not be opened, if that can be told."""
    with contextlib.suppress(OSError):
        owner = path.stat().st_uid
        if owner != os.geteuid():
            raise _foreign(path, owner)


def _foreign(path: Path, owner: int) -> EmbeddedUnavailable:
    return EmbeddedUnavailable(
        f"embedded server: the folder {shown(path)} belongs to {user_name(owner)}, who could read"
        f" every prompt, and this process is of {user_name(os.geteuid())}; name a folder of your"
        " own, or share a server by its redis:// URL"
    )


def refuse_foreign_links(path: Path) -> None:
    """Refuse a path that another user's link leads astray.

    Raises: EmbeddedUnavailable.
    """
    for each in (path, *path.parents):
        with contextlib.suppress(OSError):
            status = each.lstat()
            if stat.S_ISLNK(status.st_mode) and status.st_uid not in (0, os.geteuid()):
                raise EmbeddedUnavailable(
                    f"embedded server: {shown(each)} is a link that {user_name(status.st_uid)} made"
                    " and may change; name the folder itself"
                )


def user_name(uid: int) -> str:
    """Name a user for people."""
    pwd: Any = importlib.import_module("pwd")
    try:
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
