"""Streams of messages: whatever a reader has missed, its deltas joined are the message."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S
from workers.stubs import StubWorker, owned_end

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.contract.messages.job_chat import JobChat
from tokenbus.producer.contract.messages.job_messages import JobMessages
from tokenbus.producer.contract.messages.wire_delta import delta_json, joined
from tokenbus.producer.contract.result import JobCancelled
from tokenbus.producer.scripts import Append, Begin
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from tokenbus.engine.chat.delta import MessageDelta
    from tokenbus.producer.client.reading.event_stream import EventStream
    from tokenbus.producer.contract.events import Event
    from tokenbus.producer.scripts import Scripts

# One kind of server: what is shown is the reader's.
pytestmark = pytest.mark.parametrize("server", ["valkey"], indirect=True)

CHAT = JobChat("qwen3", {"now": {}})
TEXT = (
    "<think>\nWell.\n</think>\n\nI look. <tool"
    '<tool_call>\n{"name": "now", "arguments": {"town": "Oslo"}}\n</tool_call>'
)


class Teller:
    """A worker that logs a text by hand, a character a token, with deltas or without."""

    def __init__(self, worker: StubWorker, job_id: str) -> None:
        self.worker, self.job_id = worker, job_id
        self._log, self._listen = worker.scripts.log, worker.listens.get(job_id, "")
        self._messages = JobMessages(CHAT, job_id)
        self.last = 0

    @classmethod
    async def of(cls, client: AsyncClient) -> Teller:
        """Submit a job and pull it."""
        job = await client.submit("x", max_tokens=1000)
        worker = StubWorker(client.scripts)
        await worker.reconcile()
        await worker.pull()
        return cls(worker, job.job_id)

    def _entry(self, to: int, *, is_told: bool) -> Append:
        start, ids = self.last + 1, list(range(self.last + 1, to + 1))
        text = TEXT[self.last : to]
        delta = delta_json(self._messages.read(0, text, ids)) if is_told else ""
        self.last = to
        entry = Append(self.job_id, 1, 0, start, to, text, ids, ids, delta=delta)
        return replace(entry, listen=self._listen)

    async def begin(self, to: int) -> None:
        """Begin the log with its first tokens."""
        chat = CHAT.dump()
        begun = Begin(self.job_id, 1, "7", [self._entry(to, is_told=True)], chat=chat)
        await self._log.begin([replace(begun, listen=self._listen)], "w")

    async def tell(self, *ends: int, is_told: bool = True) -> None:
        """Log tokens up to each of some indices, an entry each."""
        for to in ends:
            await self._log.append([self._entry(to, is_told=is_told)])

    async def end(self) -> None:
        """End it as a worker of an earlier release does."""
        end = owned_end(self.job_id, 1, self.last)
        await self._log.end([replace(end, listen=self._listen)])


def message_of(text: str = TEXT, job_id: str = "") -> tuple[str, str, list[tuple[str, str, str]]]:
    """Read a whole text as the message of a job."""
    messages = JobMessages(CHAT, job_id)
    messages.read(0, text, range(1, len(text) + 1))
    messages.finish()
    found = messages.message(0)
    return found.content, found.reasoning, [(c.id, c.name, c.arguments) for c in found.calls]


def told_by(events: Iterable[Event]) -> tuple[str, str, list[tuple[str, str, str]]]:
    """Join what events tell of the first choice."""
    deltas: list[MessageDelta] = [delta for event in events for _, delta in event.deltas]
    whole = joined(deltas)
    return whole.content, whole.reasoning, [(c.id, c.name, c.arguments) for c in whole.calls]


async def take(stream: EventStream, last: int) -> list[Event]:
    """Take events until an index was seen."""
    events: list[Event] = []
    async with asyncio.timeout(PATIENCE_S):
        while not events or events[-1].to < last:
            events.append(await anext(stream))
    return events


async def rest(stream: EventStream) -> list[Event]:
    """Read a stream to its end."""
    async with asyncio.timeout(PATIENCE_S):
        return [event async for event in stream]


@pytest.fixture
async def client(redis_url: str, scripts: Scripts) -> AsyncIterator[AsyncClient]:
    """Give a client that holds few tokens back."""
    settings = ClientSettings(max_buffered_tokens=30)
    async with await AsyncClient.connect(redis_url, scripts.keys.pool, settings) as made:
        yield made


async def test_event_of_an_earlier_release_is_given_its_delta(client: AsyncClient) -> None:
    """An owner of such a release goes on with the log, and ends it; the reader was there."""
    teller = await Teller.of(client)
    stream = client.stream(teller.job_id)
    await teller.begin(1)
    events = await take(stream, 1)
    await teller.tell(20, 21)
    events += await take(stream, 21)
    await teller.tell(50, 51, 80, is_told=False)
    events += await take(stream, 80)
    await teller.tell(len(TEXT), is_told=False)
    await teller.end()
    events += await rest(stream)
    assert all(event.told is not None for event in events)
    assert told_by(events) == message_of(job_id=teller.job_id)


async def test_slow_reader_and_late_reader_join_the_same_message(client: AsyncClient) -> None:
    """One is cut off from what is live and reads the log, the other comes at a cursor."""
    teller = await Teller.of(client)
    slow = client.stream(teller.job_id)
    await teller.begin(1)
    seen = await take(slow, 1)
    await teller.tell(*range(2, 90, 3))
    late = client.stream(teller.job_id, cursor=teller.last)
    early = await take(client.stream(teller.job_id), teller.last)
    await teller.tell(len(TEXT))
    await teller.end()
    whole = message_of(job_id=teller.job_id)
    assert told_by([*seen, *await rest(slow)]) == whole
    assert told_by([*early, *await rest(late)]) == whole


async def test_job_that_ends_without_an_owner_tells_its_messages_too(client: AsyncClient) -> None:
    """Cancelled while it waits for another owner: what was held back comes with the end."""
    teller = await Teller.of(client)
    stream = client.stream(teller.job_id)
    await teller.begin(1)
    cut = TEXT.index("<tool") + 3
    await teller.tell(cut)
    events = await take(stream, cut)
    await teller.worker.scripts.lease.requeue(teller.worker.name, teller.job_id, 1)
    assert await client.cancel(teller.job_id)
    events += await rest(stream)
    with pytest.raises(JobCancelled) as cancelled:
        await client.result(teller.job_id)
    wanted = message_of(TEXT[:cut], teller.job_id)
    assert told_by(events) == wanted
    assert wanted[0] == "I look. <to"
    assert events[-1].deltas == ((0, events[-1].delta),)
    message = cancelled.value.result.message
    assert (message.content, message.reasoning) == wanted[:2]
