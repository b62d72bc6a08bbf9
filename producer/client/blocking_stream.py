"""A stream for blocking code: a task in the client's loop reads ahead of the thread that consumes.

A hop between thread and loop costs ten times what an event does. So events, or what became of jobs,
are handed over through a queue; when it is full the task waits, and what comes meanwhile is merged
or kept where every slow consumer's is.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from tokenbus.producer.errors import ClientClosed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterator

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_FULL = 64
_LOW = 16


class _Item(Generic[T]):
    """An item, which may be an exception that is none of the stream's own."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value


class Closable(Protocol[T_co]):
    """An asynchronous iterator that can be closed."""

    def __aiter__(self) -> AsyncIterator[T_co]:
        """Return the iterator."""

    def __anext__(self) -> Awaitable[T_co]:
        """Return the next item."""

    def aclose(self) -> Awaitable[None]:
        """End it."""


class BlockingStream(Generic[T]):
    """Carries the items of one asynchronous iterator from the loop to one thread."""

    def __init__(self, events: Closable[T], loop: asyncio.AbstractEventLoop) -> None:
        self._events = events
        self._loop = loop
        # Named in full: where threads became greenlets after this was imported, it is another.
        self._queue: queue.SimpleQueue[_Item[T] | BaseException | None] = queue.SimpleQueue()
        self._has_room = asyncio.Event()
        self._is_full = False

    def __iter__(self) -> Iterator[T]:
        """Yield the items. Raises: what the stream raises; ClientClosed."""
        reading = asyncio.run_coroutine_threadsafe(self._read(), self._loop)
        try:
            while (item := self._queue.get()) is not None:
                if self._is_full and self._queue.qsize() <= _LOW:
                    self._loop.call_soon_threadsafe(self._has_room.set)
                if isinstance(item, BaseException):
                    raise item
                yield item.value
        finally:
            # A closed loop has ended the task before.
            with contextlib.suppress(RuntimeError):
                reading.cancel()

    async def _read(self) -> None:
        try:
            async with contextlib.aclosing(self._events) as events:
                async for event in events:
                    self._queue.put(_Item(event))
                    if self._queue.qsize() >= _FULL:
                        await self._wait_for_room()
        except asyncio.CancelledError:
            self._queue.put(ClientClosed("the client was closed while a stream was open"))
            raise
        except Exception as error:
            # The thread's boundary: whatever ends the stream is raised there.
            self._queue.put(error)
        else:
            self._queue.put(None)

    async def _wait_for_room(self) -> None:
        self._is_full = True
        while True:
            self._has_room.clear()
            # Looked at after that: the consumer may have missed the flag, and a call that it made
            # before may come late.
            if self._queue.qsize() <= _LOW:
                break
            await self._has_room.wait()
        self._is_full = False
