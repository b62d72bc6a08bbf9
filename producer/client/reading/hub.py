"""The subscription hub: one connection per client for all channels that it listens to.

Events that were missed while the connection was away, or held back too long, show up in a stream
as a hole; the token log heals it.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from itertools import groupby
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import ConnectionError as RedisConnectionError

from tokenbus.producer.answers import SERVER_ERRORS, answer_of
from tokenbus.producer.client.reading.job_channel import JobChannel
from tokenbus.producer.contract.keys import address_of
from tokenbus.producer.errors import ClientClosed, ServerUnreachable
from tokenbus.producer.server.connection import FIRST_PAUSE_S, MAX_PAUSE_S, typed
from tokenbus.producer.server.raw_connection import RawConnection, pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from tokenbus.producer.answers import ServerAnswer
    from tokenbus.producer.client.reading.silence_watch import SilenceWatch
    from tokenbus.producer.client.reading.subscription import Subscription
    from tokenbus.producer.server.url import ServerUrl

# Silence after which the connection is asked for a sign of life, and what it gets to give one.
_PING_AFTER_S = 5.0
# A connection that ends sooner makes the pause before the next one longer: the server may have cut
# it off because we read too slowly, and meanwhile streams read their logs, which is cheaper.
_STEADY_S = 30.0
_MAX_PAUSE_AFTER_CUT_S = 3.0


class Listener(Protocol):
    """What takes the messages of one channel."""

    def hear(self, body: bytes) -> None:
        """Take a message."""

    def break_off(self) -> None:
        """Note that messages are missing: the subscription was lost and has been renewed."""

    def fail(self, error: Exception) -> None:
        """Note that nothing comes any more."""


@dataclass(slots=True, eq=False)
class _Channel:
    """A channel that is listened to, and the connection that confirmed it last."""

    listener: Listener
    confirmed: asyncio.Event = field(default_factory=asyncio.Event)
    wire: RawConnection | None = None


class SubscriptionHub:
    """Opens and closes subscriptions over one connection, which it keeps alive.

    `watch` looks after those that hear nothing; `check` raises where a call is not the owner's to
    make.
    """

    def __init__(
        self,
        redis: Redis,
        url: ServerUrl,
        watch: SilenceWatch,
        max_tokens: int,
        call_timeout_s: float,
        *,
        check: Callable[[], None],
    ) -> None:
        self._url = url
        self._silence_watch = watch
        self._check = check
        self._make_connection: Callable[[], Any] = redis.connection_pool.make_connection
        self._max_tokens = max_tokens
        self._call_timeout_s = call_timeout_s
        self._channels: dict[bytes, _Channel] = {}
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
        """Subscribe to a job's channel and wait for the confirmation; nothing after it is missed.

        Raises: ServerUnreachable without one in time; ServerRefused, ClientClosed, WrongEventLoop.
        """
        self._check()
        name = channel.encode()
        known = self._channels.get(name)
        streams = known.listener if known is not None else None
        if not isinstance(streams, JobChannel):
            streams = JobChannel()
        subscription = self._silence_watch.subscription(
            name, self._max_tokens, address_of(name), lambda gone: self._leave(streams, gone)
        )
        self.listen(name, streams)
        streams.add(subscription)
        try:
            await self.wait_for(name, timeout_s)
        except BaseException:
            self.release(subscription)
            raise
        if subscription.error is not None:
            self.release(subscription)
            raise subscription.error
        return subscription

    def listen(self, name: bytes, listener: Listener) -> None:
        """Subscribe to a channel soon, unless somebody has.

        Raises: ClientClosed, WrongEventLoop.
        """
        self._check()
        if self._closed:
            raise ClientClosed("the client is closed")
        if self._task is None or self._task.done():
            self._loop = asyncio.get_running_loop()
            self._task = self._loop.create_task(self._run())
        if name not in self._channels:
            self._channels[name] = _Channel(listener)
            self._send(b"SUBSCRIBE", name)

    def unlisten(self, name: bytes) -> None:
        """Unsubscribe from a channel soon. Safe to repeat."""
        if self._channels.pop(name, None) is not None:
            self._send(b"UNSUBSCRIBE", name)

    async def wait_for(self, name: bytes, timeout_s: float) -> None:
        """Wait until a channel is confirmed, or has failed.

        Raises: ServerUnreachable after `timeout_s`.
        """
        confirmed = self._channels[name].confirmed
        if confirmed.is_set():
            return
        try:
            async with asyncio.timeout(timeout_s):
                await confirmed.wait()
        except TimeoutError:
            reason = f": {self._reason}" if self._reason else ""
            raise ServerUnreachable(
                f"no confirmation of a subscription by {self._url} within {timeout_s:g} s{reason}",
                code="TIMEOUT",
            ) from None

    def is_live(self, name: bytes) -> bool:
        """Tell whether the connection, as far as is known, brings what a channel has now."""
        channel = self._channels.get(name)
        return channel is not None and channel.wire is not None and channel.wire is self._wire

    def release(self, subscription: Subscription) -> None:
        """End a subscription; the channel of a job is left with its last one. Safe to repeat."""
        subscription.let_go(subscription)

    def _leave(self, streams: JobChannel, subscription: Subscription) -> None:
        if not streams.remove(subscription):
            return
        known = self._channels.get(subscription.channel)
        if known is not None and known.listener is streams:
            self.unlisten(subscription.channel)

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
        for channel in list(self._channels.values()):
            channel.confirmed.set()
            channel.listener.fail(error)
        self._silence_watch.stop()

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
        # One that has just ended sends nothing; the next one subscribes to everything.
        with contextlib.suppress(RedisConnectionError):
            for command, group in groupby(unsent, key=lambda each: each[0]):
                self._wire.send(pack((command, *(name for _, name in group))))

    async def _run(self) -> None:
        """Keep a connection while the client lives, with back-off."""
        pause_s = FIRST_PAUSE_S
        while True:
            self._lost.clear()
            wire = RawConnection(self._make_connection(), self._take, self._lost.set)
            opened_at, longest_s = monotonic(), MAX_PAUSE_S
            try:
                async with asyncio.timeout(self._call_timeout_s):
                    await wire.open()
                # From here on `open` sends for itself; doubled subscriptions do no harm.
                self._wire, longest_s = wire, _MAX_PAUSE_AFTER_CUT_S
                if self._channels:
                    wire.send(pack((b"SUBSCRIBE", *self._channels)))
                self._reason = ""
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
            if monotonic() - opened_at > _STEADY_S:
                pause_s = FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)

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
        """Hand one message to the listener of its channel."""
        if not isinstance(message, list):
            if isinstance(message, Exception):
                self._failure = message
                self._lost.set()
            return
        kind, name = message[0], message[1]
        channel = self._channels.get(name)
        if channel is None:
            return
        if kind == b"message":
            channel.listener.hear(message[2])
        elif kind == b"subscribe":
            self._confirm(channel)

    def _confirm(self, channel: _Channel) -> None:
        """Note a subscription; a renewed one has missed what came in between."""
        channel.wire = self._wire
        if channel.confirmed.is_set():
            channel.listener.break_off()
        channel.confirmed.set()
