"""The fork guard knows process and event loop of a client, and what forks must leave alone.

Parent and child of a fork share the epoll instance of the parent's event loop: a connection that
the child's garbage collector closed would be struck off there, and the parent would never hear from
its server again. So what a fork inherited is never destroyed in it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import weakref
from typing import NoReturn

from tokenbus.producer.errors import ClientClosed, WrongEventLoop

_owners: weakref.WeakSet[object] = weakref.WeakSet()


def _keep_owners() -> None:
    for owner in _owners:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_owners)


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop that calls. Raises: WrongEventLoop where it is none of asyncio's."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise WrongEventLoop(
            "no event loop of asyncio runs here: an AsyncClient works in asyncio alone; use Client,"
            " under trio in a thread (trio.to_thread.run_sync)"
        ) from None


class Unsent:
    """A client: its connections live in one process, so it cannot be pickled or copied."""

    def __reduce__(self) -> NoReturn:
        """Raise TypeError, as pickle and copy expect of what they cannot take."""
        raise TypeError(
            f"a {type(self).__name__} cannot be pickled or copied: give the other process its URL"
            " and let it connect its own; threads share one as it is"
        )


class ForkGuard:
    """Remembers the process in which `owner`, which holds connections, was made."""

    __slots__ = ("pid",)

    def __init__(self, owner: object) -> None:
        self.pid = os.getpid()
        _owners.add(owner)

    @property
    def is_here(self) -> bool:
        """Tell whether this is that process."""
        return self.pid == os.getpid()

    def check(self) -> None:
        """Raise ClientClosed in a fork."""
        if not self.is_here:
            raise ClientClosed(
                f"this client was connected by process {self.pid}, which forked this one:"
                " connect after the fork"
            )


class LoopGuard(ForkGuard):
    """Remembers the event loop too, in which the connections of `owner` live."""

    __slots__ = ("_loop",)

    def __init__(self, owner: object, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(owner)
        self._loop = loop

    @property
    def has_ended(self) -> bool:
        """Tell whether the loop is closed, and every connection with it."""
        return self._loop.is_closed()

    def check_loop(self) -> None:
        """Raise WrongEventLoop in another loop, ClientClosed in a fork."""
        self.check()
        if running_loop() is not self._loop:
            raise WrongEventLoop(
                "this client was connected in another event loop"
                f"{', which is closed' if self.has_ended else ''}: connect one in each loop"
                " (asyncio.run makes a new one each time), or use Client, which works in all"
            )
