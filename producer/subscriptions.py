"""One connection per client that carries the subscriptions of all its streams.

It reads the socket in large pieces and parses them with hiredis itself: through redis-py's own
pub/sub object a message costs several times as much. Whatever was missed while the connection was
away, or held back too long, shows up in a stream as a hole; the token log heals it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

import hiredis

from tokenbus.producer.connection import FIRST_PAUSE_S, MAX_PAUSE_S, is_away
from tokenbus.producer.errors import ClientClosed, ServerUnreachable
from tokenbus.producer.events import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

_READ_BYTES = 256 * 1024
# Silence after which the connection is asked for a sign of life, and half of what it gets to live.
_PING_AFTER_S = 5.0
# From this many waiting events on, neighbours are merged.
_MERGE_FROM = 4


class Subscription:
    """The live events of one job for one stream, bounded in tokens."""

    def __init__(self, channel: bytes, max_tokens: int) -> None:
        self.channel = channel
        self._max_tokens = max_tokens
        self._events: deque[Event] = deque()
        self._num_tokens = 0
        self._has_hole = False
        self._waiter: asyncio.Future[None] | None = None
        self._waiting_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.error: Exception | None = None

    def put(self, event: Event) -> None:
        """Add a live event; a consumer that is too slow gets a hole instead of a long buffer."""
        if self._has_hole:
            return
        self._num_tokens += len(event.ids)
        if self._num_tokens > self._max_tokens:
            self.break_off()
            return
        if len(self._events) >= _MERGE_FROM:
            merged = self._events[-1].merged(event)
            if merged is not None:
                self._events[-1] = merged
                return
        self._events.append(event)
        if self._waiter is not None:
            self._wake()

    def break_off(self) -> None:
        """Forget what waits: the log has to be read."""
        self._events.clear()
        self._num_tokens = 0
        self._has_hole = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """Let the stream raise `error`."""
        self.error = error
        self._wake()

    def stop(self) -> None:
        """Let go of the timer."""
        if self._timer is not None:
            self._timer.cancel()

    async def get(self, timeout_s: float) -> Event | None:
        """Wait for the next event; None after silence or for a hole: look at the log.

        Raises: what the connection failed with for good.
        """
        if not self._events and not self._has_hole and self.error is None:
            loop = asyncio.get_running_loop()
            self._waiting_since = loop.time()
            if self._timer is None:
                self._timer = loop.call_later(timeout_s, self._look, loop, timeout_s)
            self._waiter = loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self.error is not None:
            raise self.error
        if self._has_hole or not self._events:
            self._has_hole = False
            return None
        event = self._events.popleft()
        self._num_tokens -= len(event.ids)
        return event

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _look(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        """End a wait that was silent; one timer serves all waits of that time, which are many."""
        self._timer = None
        if self._waiter is None:
            return
        left_s = self._waiting_since + timeout_s - loop.time()
        if left_s > 0:
            self._timer = loop.call_later(left_s, self._look, loop, timeout_s)
        else:
            self._wake()


class SubscriptionHub:
    """Opens and closes subscriptions over one connection, which it keeps alive."""

    def __init__(self, redis: Redis, max_tokens: int, call_timeout_s: float) -> None:
        self._make_connection: Callable[[], Any] = redis.connection_pool.make_connection
        self._max_tokens = max_tokens
        self._call_timeout_s = call_timeout_s
        self._streams: dict[bytes, set[Subscription]] = {}
        self._confirmed: dict[bytes, asyncio.Event] = {}
        self._connection: Any = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self, channel: str, timeout_s: float) -> Subscription:
        """Subscribe and wait for the server's confirmation; nothing after it is missed.

        Raises: ServerUnreachable without one in time; ClientClosed.
        """
        if self._closed:
            raise ClientClosed("the client is closed")
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        name = channel.encode()
        subscription = Subscription(name, self._max_tokens)
        streams = self._streams.setdefault(name, set())
        streams.add(subscription)
        try:
            async with asyncio.timeout(timeout_s):
                if len(streams) == 1:
                    self._confirmed[name] = asyncio.Event()
                    await self._send("SUBSCRIBE", name)
                await self._confirmed[name].wait()
        except TimeoutError:
            await self.release(subscription)
            message = f"no confirmation of a subscription within {timeout_s:g} s"
            raise ServerUnreachable(message) from None
        except BaseException:
            await self.release(subscription)
            raise
        if subscription.error is not None:
            raise subscription.error
        return subscription

    async def release(self, subscription: Subscription) -> None:
        """End a subscription; the channel is left with its last one. Safe to repeat."""
        subscription.stop()
        streams = self._streams.get(subscription.channel)
        if streams is None or subscription not in streams:
            return
        streams.discard(subscription)
        if not streams:
            del self._streams[subscription.channel]
            del self._confirmed[subscription.channel]
            await self._send("UNSUBSCRIBE", subscription.channel)

    async def close(self) -> None:
        """Close the connection; streams that still wait raise ClientClosed."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._fail(ClientClosed("the client was closed while a stream was open"))

    def _fail(self, error: Exception) -> None:
        for name, streams in self._streams.items():
            self._confirmed[name].set()
            for stream in streams:
                stream.fail(error)

    async def _send(self, command: str, *channels: bytes) -> None:
        """Send a command if there is a connection; a new one subscribes to everything anyway."""
        connection = self._connection
        if connection is None:
            return
        try:
            await connection.send_command(command, *channels)
        except Exception as error:
            if not is_away(error):
                raise
            self._connection = None

    async def _run(self) -> None:
        """Keep a connection while the client lives, with back-off."""
        pause_s = FIRST_PAUSE_S
        while True:
            connection = self._make_connection()
            try:
                async with asyncio.timeout(self._call_timeout_s):
                    await connection.connect()
                    # From here on `open` sends for itself; doubled subscriptions do no harm.
                    self._connection = connection
                    if self._streams:
                        await connection.send_command("SUBSCRIBE", *self._streams)
                pause_s = FIRST_PAUSE_S
                await self._read(connection._reader)  # its own parser costs 10 us a message
            except Exception as error:
                if not is_away(error):
                    self._fail(error)
                    return
            finally:
                self._connection = None
                await connection.disconnect(nowait=True)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Read messages until the connection ends or gives no sign of life."""
        parser = hiredis.Reader()
        asked = False
        while True:
            try:
                async with asyncio.timeout(_PING_AFTER_S):
                    piece = await reader.read(_READ_BYTES)
            except TimeoutError:
                if asked:
                    return
                asked = True
                await self._send("PING")
                continue
            if not piece:
                return
            asked = False
            parser.feed(piece)
            while (message := parser.gets()) is not False:
                self._take(message)

    def _take(self, message: Any) -> None:
        """Hand one message to the streams of its channel."""
        if not isinstance(message, list):
            if isinstance(message, hiredis.ReplyError):
                raise message
            return
        if message[0] == b"message":
            streams = self._streams.get(message[1])
            if streams:
                self._deliver(streams, message[2])
        elif message[0] == b"subscribe" and message[1] in self._confirmed:
            self._confirm(message[1])

    def _confirm(self, name: bytes) -> None:
        """Note a subscription; a renewed one has missed what came in between."""
        if self._confirmed[name].is_set():
            for stream in self._streams[name]:
                stream.break_off()
        self._confirmed[name].set()

    def _deliver(self, streams: set[Subscription], body: bytes) -> None:
        """Parse an event once; what is none of ours is a stranger's and is left out."""
        try:
            event = Event.parse(body)
        except (ValueError, KeyError, TypeError):
            return
        for stream in streams:
            stream.put(event)
