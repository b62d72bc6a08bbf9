"""The real reader on a hub whose connection the schedule drives."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bus_stubs import text_of
from storm_network import Actor, Call

from tokenbus.producer.errors import JobLost, JobUnknown
from tokenbus.producer.reader import Reader
from tokenbus.producer.scripts import Scripts
from tokenbus.producer.server_url import ServerUrl
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    from storm_network import Network

    from tokenbus.producer.events import Event, Finish

SETTINGS = ClientSettings(retry_for_s=3600)


@dataclass(eq=False)
class Ear:
    """A hub and its one subscription: an event, a hole or silence, whenever the schedule says."""

    actor: Actor
    channel: str
    events: deque[Event] = field(default_factory=deque)
    is_open: bool = False

    async def open(self, channel: str, timeout_s: float) -> Ear:  # noqa: ARG002 -- as the hub's
        """Subscribe."""
        self.channel, self.is_open = channel, True
        return self

    async def release(self, subscription: Ear) -> None:
        """Unsubscribe."""
        subscription.is_open = False
        subscription.events.clear()

    def hear(self, channel: str, event: Event) -> None:
        """Take what was published, if it is ours and we listen."""
        if self.is_open and channel == self.channel:
            self.events.append(event)

    async def get(self, timeout_s: float) -> Event | None:  # noqa: ARG002 -- the schedule decides
        """Wait until the schedule picks us; None is silence, or a connection that was renewed."""
        network = self.actor.network
        call = Call(self.actor, "listen", (), asyncio.get_running_loop().create_future())
        network.pending.append(call)
        try:
            await call.reply
        except ConnectionError:
            self.events.clear()
            return None
        finally:
            if call in network.pending:
                network.pending.remove(call)
        if self.events and network.chance.random() < network.fault_rate / 4:
            self.events.clear()
            return None
        return self.events.popleft() if self.events else None


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
        self.ear = Ear(self.actor, "")
        redis: Any = self.actor
        hub: Any = self.ear
        scripts = Scripts(redis, self.pool)
        self._reader = Reader(scripts, hub, ServerUrl.parse("unix:///storm"), SETTINGS)
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
        except (JobLost, JobUnknown) as error:
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
