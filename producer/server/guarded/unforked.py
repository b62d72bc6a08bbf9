"""Descriptors that no fork of this process keeps: a lock would live as long as the fork does.

A program that forks, a web server with workers for instance, may do so in one thread while another
starts a guard.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_kept: set[int] = set()
_forking = threading.RLock()


def open_unforked(open_one: Callable[[], int]) -> int:
    """Open a descriptor that a fork closes at once. Raises: what `open_one` raises."""
    with _forking:
        fd = open_one()
        _kept.add(fd)
    return fd


def close_unforked(fds: Iterable[int]) -> None:
    """Close descriptors."""
    with _forking:
        for fd in fds:
            _kept.discard(fd)
            os.close(fd)


def _leave_to_parent() -> None:
    for fd in _kept:
        with contextlib.suppress(OSError):
            os.close(fd)
    _kept.clear()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_forking.acquire,
        after_in_parent=_forking.release,
        after_in_child=_leave_to_parent,
    )
