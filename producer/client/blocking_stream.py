"""A stream for blocking code: a task in the client's loop reads ahead of the thread that consumes.

A hop between thread and loop costs ten times what an event does. So events are handed over through
a queue; when it is full the task waits, and what comes meanwhile is merged where every slow
consumer's events are.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from typing import TYPE_CHECKING

from tokenbus.producer.errors import ClientClosed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from tokenbus.producer.client.event_stream import EventStream
    from tokenbus.producer.contract.events import Event

_FULL = 64
_LOW = 16


class BlockingStream:
    """Carries the events of one stream from the loop to one thread."""

    def __init__(
        self, events: EventStream | AsyncGenerator[Event, None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._events = events
        self._loop = loop
        # Named in full: where threads became greenlets after this was imported, it is another.
        self._queue: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        self._has_room = asyncio.Event()
        self._is_full = False

    def __iter__(self) -> Iterator[Event]:
        """Yield the events. Raises: what the stream raises; ClientClosed."""
        reading = asyncio.run_coroutine_threadsafe(self._read(), self._loop)
        try:
            while (item := self._queue.get()) is not None:
                if self._is_full and self._queue.qsize() <= _LOW:
                    self._loop.call_soon_threadsafe(self._has_room.set)
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            # A closed loop has ended the task before.
            with contextlib.suppress(RuntimeError):
                reading.cancel()

    async def _read(self) -> None:
        try:
            async with contextlib.aclosing(self._events) as events:
                async for event in events:
                    self._queue.put(event)
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
