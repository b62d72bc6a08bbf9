"""The subscription hub: one connection per client for the channels of all its streams.

Events that were missed while the connection was away, or held back too long, show up in a stream
as a hole; the token log heals it.
"""

from __future__ import annotations

import asyncio
import contextlib
from itertools import groupby
from typing import TYPE_CHECKING, Any

import msgspec

from tokenbus.producer.answers import SERVER_ERRORS, answer_of
from tokenbus.producer.client.subscription import Subscription
from tokenbus.producer.contract.channel import parse_message
from tokenbus.producer.errors import ClientClosed, SchemaMismatch, ServerUnreachable
from tokenbus.producer.server.connection import FIRST_PAUSE_S, MAX_PAUSE_S, typed
from tokenbus.producer.server.raw_connection import RawConnection, pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from tokenbus.producer.answers import ServerAnswer
    from tokenbus.producer.client.fork_guard import LoopGuard
    from tokenbus.producer.contract.events import Event
    from tokenbus.producer.server.url import ServerUrl

# Silence after which the connection is asked for a sign of life, and what it gets to give one.
_PING_AFTER_S = 5.0


class SubscriptionHub:
    """Opens and closes subscriptions over one connection, which it keeps alive."""

    def __init__(
        self,
        redis: Redis,
        url: ServerUrl,
        max_tokens: int,
        call_timeout_s: float,
        *,
        home: LoopGuard,
    ) -> None:
        self._url = url
        self._home = home
        self._make_connection: Callable[[], Any] = redis.connection_pool.make_connection
        self._max_tokens = max_tokens
        self._call_timeout_s = call_timeout_s
        self._streams: dict[bytes, set[Subscription]] = {}
        self._confirmed: dict[bytes, asyncio.Event] = {}
        # Commands of one turn of the event loop: neighbours of a kind are sent as one.
        self._unsent: list[tuple[bytes, bytes]] = []
        self._wire: RawConnection | None = None
        self._lost = asyncio.Event()
        self._failure: Exception | None = None
        # What the last try to connect failed with, for those who wait.
        self._reason = ""
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def open(self, channel: str, timeout_s: float) -> Subscription:
        """Subscribe and wait for the server's confirmation; nothing after it is missed.

        Raises: ServerUnreachable without one in time; ServerRefused, ClientClosed, WrongEventLoop.
        """
        self._home.check_loop()
        if self._closed:
            raise ClientClosed("the client is closed")
        if self._task is None or self._task.done():
            self._loop = asyncio.get_running_loop()
            self._task = self._loop.create_task(self._run())
        name = channel.encode()
        subscription = Subscription(name, self._max_tokens)
        streams = self._streams.setdefault(name, set())
        streams.add(subscription)
        try:
            async with asyncio.timeout(timeout_s):
                if len(streams) == 1:
                    self._confirmed[name] = asyncio.Event()
                    self._send(b"SUBSCRIBE", name)
                await self._confirmed[name].wait()
        except TimeoutError:
            self.release(subscription)
            reason = f": {self._reason}" if self._reason else ""
            raise ServerUnreachable(
                f"no confirmation of a subscription by {self._url} within {timeout_s:g} s{reason}",
                code="TIMEOUT",
            ) from None
        except BaseException:
            self.release(subscription)
            raise
        if subscription.error is not None:
            raise subscription.error
        return subscription

    def release(self, subscription: Subscription) -> None:
        """End a subscription; the channel is left with its last one. Safe to repeat."""
        subscription.stop()
        streams = self._streams.get(subscription.channel)
        if streams is None or subscription not in streams:
            return
        streams.discard(subscription)
        if not streams:
            del self._streams[subscription.channel]
            del self._confirmed[subscription.channel]
            self._send(b"UNSUBSCRIBE", subscription.channel)

    def abandon(self, subscription: Subscription) -> None:
        """End a subscription from any thread; one of a loop that is closed needs no end."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self.release, subscription)

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

    def _send(self, command: bytes, name: bytes) -> None:
        """Send a command soon, if there is a connection; a new one subscribes to everything."""
        if self._wire is None or self._loop is None:
            return
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append((command, name))

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._wire is None:
            return
        for command, group in groupby(unsent, key=lambda each: each[0]):
            self._wire.send(pack((command, *(name for _, name in group))))

    async def _run(self) -> None:
        """Keep a connection while the client lives, with back-off."""
        pause_s = FIRST_PAUSE_S
        while True:
            self._lost.clear()
            wire = RawConnection(self._make_connection(), self._take, self._lost.set)
            try:
                async with asyncio.timeout(self._call_timeout_s):
                    await wire.open()
                # From here on `open` sends for itself; doubled subscriptions do no harm.
                self._wire = wire
                if self._streams:
                    wire.send(pack((b"SUBSCRIBE", *self._streams)))
                pause_s, self._reason = FIRST_PAUSE_S, ""
                await self._watch(wire)
            except SERVER_ERRORS as error:
                answer = answer_of(error)
                self._reason = answer.told
                if not self._may_pass(answer):
                    self._fail(typed(error, self._url))
                    return
            except Exception as error:
                # The boundary of the hub's task: streams must not wait for one that has ended.
                self._fail(error)
                return
            finally:
                self._wire = None
                await wire.close()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _may_pass(self, answer: ServerAnswer) -> bool:
        """Tell whether connecting anew may help; a password in a file may be about to change."""
        return answer.waits or (answer.is_of_credentials and self._url.rereads_password)

    async def _watch(self, wire: RawConnection) -> None:
        """Return when the connection has ended or gives no sign of life.

        Raises: what the server refused a subscription with.
        """
        while not self._lost.is_set():
            wire.heard = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PING_AFTER_S):
                    await self._lost.wait()
            if not wire.heard and not self._lost.is_set():
                wire.send(pack((b"PING",)))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PING_AFTER_S):
                        await self._lost.wait()
                if not wire.heard:
                    return
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _take(self, message: Any) -> None:
        """Hand one message to the streams of its channel."""
        if not isinstance(message, list):
            if isinstance(message, Exception):
                self._failure = message
                self._lost.set()
            return
        kind, name = message[0], message[1]
        if kind == b"message":
            streams = self._streams.get(name)
            if streams:
                self._deliver(streams, message[2])
        elif kind == b"subscribe" and name in self._confirmed:
            self._confirm(name)

    def _confirm(self, name: bytes) -> None:
        """Note a subscription; a renewed one has missed what came in between."""
        if self._confirmed[name].is_set():
            for stream in self._streams[name]:
                stream.break_off()
        self._confirmed[name].set()

    def _deliver(self, streams: set[Subscription], body: bytes) -> None:
        """Parse an event once; a message of a stranger is left out."""
        try:
            event = parse_message(body)
        except SchemaMismatch:
            # Of a later version, if it is real: the record tells.
            for stream in tuple(streams):
                stream.break_off()
            return
        except (ValueError, KeyError, TypeError):
            return
        if len(streams) == 1:
            (stream,) = streams
            _put(stream, event)
            return
        # A task that runs on may end its stream, or open another.
        for stream in tuple(streams):
            _put(stream, event)


def _put(stream: Subscription, event: Event) -> None:
    """Give a stream an event of its job; version 1 does not tell the tenant.

    A job keeps its wire version, so an event of another one is of an equal name elsewhere: workers
    of version 1 publish what they do in any logical database on the channels of database 0.
    """
    address = stream.address
    if event.job_id != address.job_id or stream.version not in (None, event.version):
        return
    if event.tenant == address.tenant:
        stream.put(event)
    elif event.version == 1:
        stream.put(msgspec.structs.replace(event, tenant=address.tenant))
