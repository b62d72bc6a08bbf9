"""The stop request: the first drains a worker, the second stops it at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


class StopRequest:
    """Whether a worker was asked to stop, and how soon."""

    def __init__(self) -> None:
        self._requested = asyncio.Event()
        self._now = asyncio.Event()

    @property
    def is_now(self) -> bool:
        """Tell whether nothing may be waited for any more."""
        return self._now.is_set()

    def make(self, *, now: bool = False) -> None:
        """Ask the worker to drain; asked again, or with `now`, its deadline is over."""
        if now or self._requested.is_set():
            self._now.set()
        self._requested.set()

    async def made(self) -> None:
        """Wait until the worker is asked to stop."""
        await self._requested.wait()

    async def unless_made(self, work: Coroutine[None, None, T]) -> T | None:
        """Await `work`, or cancel it and return None when the worker is asked to stop."""
        task = asyncio.create_task(work)
        stop = asyncio.create_task(self._requested.wait())
        try:
            await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            return None
        finally:
            stop.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait([task])

    async def until_now(self, work: Coroutine[None, None, None], timeout_s: float) -> None:
        """Await `work` until it is done, the time is over or the worker is to stop at once."""
        waits = [asyncio.create_task(work), asyncio.create_task(self._now.wait())]
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
