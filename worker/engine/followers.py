"""The followers of an engine: processes of the other ranks, which end before it is replaced.

They end with the engine by themselves. But what a dying process has of a device is free only when
it is gone, and the next group needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable


class Followers:
    """The followers of one engine, by handles that name no other process, where there are such."""

    def __init__(self) -> None:
        self._handles: list[int] = []

    def watch(self, pids: Iterable[int]) -> None:
        """Take the followers of an engine that is ready."""
        if hasattr(os, "pidfd_open"):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    self._handles.append(os.pidfd_open(pid))

    def kill(self) -> None:
        """Kill those that still live."""
        for handle in self._handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)

    async def end(self, timeout_s: float) -> None:
        """Kill those that still live, and wait until all are gone. Safe to repeat."""
        self.kill()
        handles, self._handles = self._handles, []
        try:
            async with asyncio.timeout(timeout_s):
                for handle in handles:
                    await _gone(handle)
        except TimeoutError:
            get_logger().warning("ranks.not_gone", after_s=timeout_s)
        finally:
            for handle in handles:
                os.close(handle)


async def _gone(handle: int) -> None:
    """Wait for the end of the process behind a handle."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
