"""A wake-up runs the task that reads a stream as soon as its socket was read.

A future wakes its task in the next turn of the event loop, after all messages that came in the same
read. A wake-up runs the task on at once: a token is with its consumer before the next one is
parsed, while the cache still has it. To asyncio's tasks it is a future (`asyncio.isfuture`), of
which they ask no more than what is here; a future of asyncio's own would cost a turn of the loop a
token. It serves all waits of its stream, one after the other.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextvars import Context


class Wakeup:
    """Wakes at most one waiting task, which waits with `await`."""

    __slots__ = ("_asyncio_future_blocking", "_cancelled", "_context", "_loop", "_resume")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._resume: Callable[[Wakeup], object] | None = None
        self._context: Context | None = None
        self._cancelled: tuple[Any, ...] | None = None

    @property
    def is_awaited(self) -> bool:
        """Tell whether a task waits."""
        return self._resume is not None

    def ring(self) -> None:
        """Run the waiting task, if any, up to its next wait; soon where another task is running."""
        resume, context = self._resume, self._context
        if resume is None:
            return
        if context is None or asyncio.current_task(self._loop) is not None:
            self.ring_soon()
            return
        self._resume = None
        context.run(resume, self)

    def ring_soon(self) -> None:
        """Let the waiting task, if any, run in the next turn of the event loop."""
        resume = self._resume
        if resume is not None:
            self._resume = None
            self._loop.call_soon(resume, self, context=self._context)

    def __await__(self) -> Generator[Wakeup, None, None]:
        """Wait for the next ring."""
        self._asyncio_future_blocking = True
        yield self

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop of its tasks."""
        return self._loop

    def add_done_callback(
        self, resume: Callable[[Wakeup], object], *, context: Context | None = None
    ) -> None:
        """Note how the task that has begun to wait is run on."""
        self._resume = resume
        self._context = context

    def cancel(self, msg: object = None) -> bool:
        """End the wait of a task that is being cancelled; False if it was rung already."""
        if self._resume is None:
            return False
        self._cancelled = () if msg is None else (msg,)
        self.ring_soon()
        return True

    def result(self) -> None:
        """Return to the task. Raises: asyncio.CancelledError once after `cancel`."""
        cancelled, self._cancelled = self._cancelled, None
        if cancelled is not None:
            raise asyncio.CancelledError(*cancelled)
