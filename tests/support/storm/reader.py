"""The real reader on a hub whose connection the schedule drives."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storm.actor import Actor
from storm.network import Call
from workers.stubs import text_of

from tokenbus.producer.client.reading.lookup import Lookup
from tokenbus.producer.client.reading.reader import Reader
from tokenbus.producer.client.reading.subscription import Subscription
from tokenbus.producer.contract.address import JobAddress
from tokenbus.producer.contract.keys import address_of
from tokenbus.producer.errors import CursorInvalid, JobLost, JobUnknown
from tokenbus.producer.scripts import Scripts
from tokenbus.producer.server.url import ServerUrl
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    from storm.network import Network

    from tokenbus.producer.contract.events import Event, Finish

SETTINGS = ClientSettings(retry_for_s=3600)
# More than any job of a schedule has.
MAX_TOKENS = 1000


class SocketReader(Subscription):
    """A hub and its one subscription: an event, a hole or silence, whenever the schedule says."""

    def __init__(self, actor: Actor) -> None:
        super().__init__(b"", MAX_TOKENS, JobAddress(""), lambda _: None)
        self._actor = actor
        self._heard: deque[Event] = deque()
        self._is_open = False

    async def open(self, channel: str, timeout_s: float) -> SocketReader:  # noqa: ARG002 -- as the hub's
        """Subscribe."""
        self.channel, self._is_open = channel.encode(), True
        self.address = address_of(self.channel)
        return self

    def release(self, _: Subscription) -> None:
        """Unsubscribe."""
        self._is_open = False
        self._heard.clear()
        self.events.clear()

    abandon = release

    def hear(self, channel: str, event: Event) -> None:
        """Take what was published, if it is ours and we listen."""
        if self._is_open and channel.encode() == self.channel:
            self._heard.append(event)

    def wait(self) -> asyncio.Future[None]:
        """Return what is done when the schedule picks us."""
        loop = asyncio.get_running_loop()
        call = Call(self._actor, "listen", (), loop.create_future())
        self._actor.network.pending.append(call)
        waiter = self.waiter = loop.create_future()
        waiter.add_done_callback(lambda _: self._actor.network.forget(call))
        call.reply.add_done_callback(lambda reply: self._picked(reply, waiter))
        return waiter

    def _picked(self, reply: asyncio.Future[Any], waiter: asyncio.Future[None]) -> None:
        """Let the stream have the next event; none is silence, or a connection that was renewed."""
        network = self._actor.network
        is_renewed = reply.cancelled() or reply.exception() is not None
        if is_renewed or (self._heard and network.chance.random() < network.fault_rate / 4):
            self._heard.clear()
        elif self._heard:
            self.put(self._heard.popleft())
        if not waiter.done():
            waiter.set_result(None)


@dataclass(eq=False)
class StormReader:
    """One reader of one job, which checks each index and remembers what it was shown."""

    job_id: str
    network: Network
    pool: str
    last: int = 0
    finish: Finish | None = None
    lost: Exception | None = None

    def __post_init__(self) -> None:
        """Start reading."""
        self.actor = Actor(f"reader of {self.job_id}", self.network)
        self.socket_reader = SocketReader(self.actor)
        redis: Any = self.actor
        hub: Any = self.socket_reader
        scripts = Scripts(redis, self.pool)
        self._reader = Reader(
            scripts, hub, ServerUrl.parse("unix:///storm"), SETTINGS, Lookup(scripts)
        )
        self.task = asyncio.create_task(self._read())

    def come_again(self) -> None:
        """Break off and read on from the cursor."""
        self.task.cancel()
        self.network.abandon(self.actor)
        self.task = asyncio.create_task(self._read())

    @property
    def is_done(self) -> bool:
        """Tell whether the stream ended. Raises: what it failed with."""
        if self.task.done() and not self.task.cancelled():
            self.task.result()
        return self.finish is not None or self.lost is not None

    async def _read(self) -> None:
        if self.finish is not None:
            return
        try:
            async for event in self._reader.stream(self.job_id, self.last):
                self._see(event)
        except (CursorInvalid, JobLost, JobUnknown) as error:
            self.lost = error

    def _see(self, event: Event) -> None:
        """Every index once, in order, without a gap, and nothing after the end (P2, P3)."""
        if self.finish is not None:
            raise AssertionError(f"{self.job_id}: an event after the terminal one")
        if event.finish is not None:
            self.finish = event.finish
            return
        if event.start != self.last + 1 or event.text != text_of(event.start, event.to):
            raise AssertionError(f"{self.job_id}: {event} after index {self.last}")
        self.last = event.to
