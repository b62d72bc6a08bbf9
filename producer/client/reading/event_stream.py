"""The events of one job as an asynchronous iterator: from the log, then live.

A token costs one turn of the event loop and one frame of Python here, because a web backend pays
that for every token of every user: no generator inside a generator, no task in between.
A consumer without a task takes events where they are heard (`hand_to`).

It is one file because each event is judged by all of its state, whichever way it goes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from tokenbus.producer.contract.events import Event
from tokenbus.producer.errors import CursorInvalid

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from tokenbus.producer.client.reading.hub import SubscriptionHub
    from tokenbus.producer.client.reading.subscription import Subscription
    from tokenbus.producer.contract.address import JobAddress
    from tokenbus.producer.contract.messages.job_messages import JobMessages

    # Reads a job after a cursor; the flag says that the job is known to exist.
    Replay = Callable[[JobAddress, int, bool], Awaitable["Replayed"]]


class Replayed(NamedTuple):
    """What is known of a job after a cursor, at which address it lies and which version it has.

    The version is None where no record tells; `is_held` says that a worker holds the job. Where
    answers are messages, `messages` has read all of the log.
    """

    place: str
    version: int | None
    events: Iterable[Event]
    is_held: bool = False
    messages: JobMessages | None = None


class EventStream(AsyncIterator[Event]):
    """Yields each index once and in order, the terminal event last.

    What is live ends at a hole (an event that does not follow, the terminal one included) or after
    silence; then the log is read again. A wait that is cancelled loses nothing: the stream can be
    read on. An error ends it, as `aclose` does; a stream that is merely dropped lets its
    subscription go when it is collected.

    Where the client channel brings the job, `subscribe` gives what was heard there so far: nothing
    is asked of the server then. A worker of an earlier release does not publish there; after a
    silence in which it wrote, the stream goes on with the job's own channel.

    Where answers are messages, live events tell their deltas; one that does not, of a worker of an
    earlier release, is given its own by what has read the log so far.
    """

    __slots__ = (
        "_address",
        "_channel_of",
        "_cursor",
        "_given",
        "_heard_at",
        "_hub",
        "_is_ended",
        "_is_proven",
        "_is_shared",
        "_is_silent",
        "_is_told",
        "_kept_s",
        "_live",
        "_logged",
        "_messages",
        "_must_read",
        "_open_timeout_s",
        "_place",
        "_replay",
        "_subscribe",
        "_subscription",
        "_take",
    )

    def __init__(
        self,
        hub: SubscriptionHub,
        replay: Replay,
        address: JobAddress,
        channel_of: Callable[[str], str],
        cursor: int,
        *,
        open_timeout_s: float,
        kept_s: float,
        subscribe: Callable[[JobAddress], Subscription | None] | None = None,
        is_proven: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begin after a cursor; `is_proven` tells whether workers publish on the client channel."""
        self._hub = hub
        self._replay = replay
        self._address = address
        # Where the job lies; a tenant's of version 1 lies elsewhere, which the first look tells.
        self._place = address.text
        self._channel_of = channel_of
        self._cursor = self._given = cursor
        self._open_timeout_s = open_timeout_s
        # Asked once, and only by who begins at the beginning.
        self._subscribe = subscribe if cursor == 0 else None
        # Whether the client channel brings the events.
        self._is_shared = False
        self._is_proven = is_proven
        self._is_silent = False
        self._subscription: Subscription | None = None
        # The subscription while what it brings comes next, None while the log does.
        self._live: Subscription | None = None
        self._logged: deque[Event] = deque()
        self._must_read = True
        # Whether events tell deltas, and what has read the answers up to the cursor, if it did.
        self._is_told = False
        self._messages: JobMessages | None = None
        # When the job was known last; what ended may be forgotten `kept_s` later.
        self._heard_at: float | None = None
        self._kept_s = kept_s
        self._is_ended = False
        self._take: Callable[[Event], bool] | None = None

    def hand_to(self, take: Callable[[Event], bool]) -> None:
        """Offer live events to `take` where they are heard, while a task waits for the next one.

        The task goes on with what `take` leaves, by returning false, and with the end; no event
        wakes it that was taken. Where `take` raises, the event is left to the task too.
        """
        self._take = take
        if self._live is not None:
            self._live.hand_to(self._offer)

    def _offer(self, event: Event) -> bool:
        """Hand over a live event that follows the cursor and needs nothing of the log."""
        take = self._take
        if take is None or event.start != self._cursor + 1 or event.finish is not None:
            return False
        if event.told is None:
            if self._is_told:
                return False
        else:
            self._is_told = True
            self._messages = None
        try:
            is_taken = take(event)
        except Exception:
            # The boundary of a stream: others are heard over the same connection, and the task that
            # waits meets what is wrong with the event.
            return False
        if is_taken:
            self._cursor = event.to
        return is_taken

    async def __anext__(self) -> Event:
        """Return the next event. Raises: what `AsyncClient.stream` names; StopAsyncIteration."""
        while True:
            live = self._live
            if live is None:
                event = await self._next_logged()
                if event is None:
                    continue
            elif live.events:
                event = live.take()
            else:
                await live.wait()
                if not live.events:
                    self._end_live(live)
                    continue
                event = live.take()
            if live is not None and (self._is_told or event.told is not None):
                event = self._told(event)
            if event is None or (live is not None and event.start > self._cursor + 1):
                self._read_again()
            elif event.finish is not None:
                return self._last(event)
            elif event.to > self._cursor:
                event = event if event.start > self._cursor else event.after(self._cursor)
                self._cursor = event.to
                return event

    def _told(self, event: Event) -> Event | None:
        """Return a live event with its deltas, None where only the log tells them."""
        self._is_told = True
        if event.start != self._cursor + 1:
            # Of one that begins before the cursor the rest alone is to be told.
            is_cut = event.start <= self._cursor < event.to
            return None if is_cut else event
        messages = self._messages
        if event.told is not None:
            self._messages = None
            return event
        if messages is None:
            return None
        if event.finish is not None:
            return event.with_deltas(messages.finish())
        return event.with_deltas([messages.read(event.choice, event.text, event.ends)])

    def _last(self, event: Event) -> Event:
        """End with the terminal event. Raises: CursorInvalid where nothing can follow the cursor.

        A log that lost its tail may be shorter than what this stream has shown, which is right.
        """
        self._end()
        if self._cursor == self._given > event.to:
            raise CursorInvalid(
                "cursor", f"{self._given} lies beyond the last token, which is {event.to}"
            )
        return event

    async def aclose(self) -> None:
        """End the stream. Safe to repeat."""
        self._end()

    def __del__(self) -> None:
        """Let the subscription go, whichever thread collects."""
        if self._subscription is not None:
            self._hub.abandon(self._subscription)

    async def _next_logged(self) -> Event | None:
        """Return the next event of the log; None once it is used up and the stream is live."""
        if self._is_ended:
            raise StopAsyncIteration
        try:
            subscription = self._subscription or self._shared() or await self._opened()
            if self._must_read:
                known = await self._replay(self._address, self._cursor, self._was_heard)
                self._logged.extend(known.events)
                if self._logged:
                    self._messages = known.messages
                    self._is_told = known.messages is not None
                if known.place != self._place or self._is_unheard(known):
                    self._move(known.place)
                    return None
                if known.version is not None:
                    subscription.expect(known.version)
                self._must_read = False
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._end()
            raise
        self._heard_at = monotonic()
        if self._logged:
            return self._logged.popleft()
        self._live = subscription
        subscription.last = self._cursor
        if self._take is not None:
            subscription.hand_to(self._offer)
        return None

    def _shared(self) -> Subscription | None:
        """Take what the client channel has brought, once."""
        subscribe, self._subscribe = self._subscribe, None
        shared = None if subscribe is None else subscribe(self._address)
        if shared is not None:
            self._subscription = shared
            self._is_shared = True
            self._must_read, shared.has_hole = shared.has_hole, False
        return shared

    async def _opened(self) -> Subscription:
        """Subscribe to the channel of the job. Raises: what `SubscriptionHub.open` raises."""
        opened = await self._hub.open(self._channel_of(self._place), self._open_timeout_s)
        self._subscription = opened
        if self._place != self._address.text:
            opened.belong_to(self._address)
        return opened

    def _is_unheard(self, known: Replayed) -> bool:
        """Tell whether a worker wrote, or is about to, what the client channel does not bring."""
        is_silent, self._is_silent = self._is_silent, False
        if not self._is_shared or not is_silent:
            return False
        if self._logged:
            return self._logged[-1].finish is None
        return known.is_held and not self._is_proven()

    @property
    def _was_heard(self) -> bool:
        """Tell whether the job was known so lately that it cannot have expired since."""
        return self._heard_at is not None and monotonic() - self._heard_at < self._kept_s

    def _move(self, place: str) -> None:
        """Go on where the job lies; what was read came before the right subscription."""
        self._place = place
        self._is_shared = False
        self._logged.clear()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.hand_to(None)
            self._hub.release(subscription)

    def _end_live(self, live: Subscription) -> None:
        """Go back to the log after a hole or silence. Raises: what the connection failed with."""
        if live.error is not None:
            self._end()
            raise live.error
        self._is_silent = not live.has_hole
        live.has_hole = False
        self._read_again()

    def _read_again(self) -> None:
        self._live = None
        self._must_read = True

    def _end(self) -> None:
        self._is_ended = True
        self._live = self._take = None
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.hand_to(None)
            self._hub.release(subscription)
