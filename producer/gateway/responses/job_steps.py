"""Steps of a job: what each token adds to its message, live or from the stored result."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from tokenbus.engine.chat.delta import MessageDelta
from tokenbus.producer.contract.address import JobAddress
from tokenbus.producer.contract.events import Event, messages_of
from tokenbus.producer.contract.result import JobResult
from tokenbus.producer.gateway.responses.response_events import (
    ResponseEvents,
    ResponseToken,
    Step,
    Wire,
)
from tokenbus.producer.gateway.wire.logprob_forms import NO_TEXTS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.contract.messages.job_chat import JobChat
    from tokenbus.producer.contract.messages.job_messages import JobMessages
    from tokenbus.producer.stored.response_record import ResponseRecord


async def live_steps(
    client: AsyncClient, job_id: str, tenant: str, on_cancel: Callable[[], Awaitable[None]]
) -> AsyncGenerator[Step, None]:
    """Yield the steps of a job from its first token on, its finish last.

    `on_cancel` is called before the finish of a job that was cancelled.
    Raises: what `AsyncClient.stream` raises; what `on_cancel` raises.
    """
    reading: ChoiceSteps | None = None
    async with aclosing(client.stream(job_id, tenant=tenant)) as events:
        async for event in events:
            if reading is None:
                address = JobAddress(job_id, tenant).text
                chat = None if event.told is None else await _chat(client, address)
                reading = ChoiceSteps(chat, address)
            if event.finish is not None and event.finish.reason == "cancelled":
                await on_cancel()
            for step in reading.of(event):
                yield step


async def logged_steps(client: AsyncClient, address: str) -> list[Step]:
    """Return the steps of the job at an address as far as they are logged now.

    Raises: what a call on the server raises.
    """
    events, chat = await client.scripts.log.story(address)
    reading = ChoiceSteps(chat, address)
    return [step for event in events or () for step in reading.of(event)]


def result_steps(result: JobResult) -> Iterator[Step]:
    """Yield the same of a stored result."""
    reading = ChoiceSteps(result.finish.chat, JobAddress(result.job_id, result.tenant).text)
    for event in result.events(0):
        yield from reading.of(event)


def result_events(
    record: ResponseRecord, result: JobResult, texts: Mapping[int, str] = NO_TEXTS
) -> tuple[list[Wire], Wire]:
    """Return all events of a response whose job has ended, and the response as it is then.

    `texts` are those of alternatives in logprobs, by their ids.
    """
    events = ResponseEvents(record, texts)
    told = events.begin()
    for step in result_steps(result):
        told += events.take(step)
    return told, events.response


def response_body(
    record: ResponseRecord, result: JobResult, texts: Mapping[int, str] = NO_TEXTS
) -> Wire:
    """Return the response object that the result of its job makes."""
    return result_events(record, result, texts)[1]


async def _chat(client: AsyncClient, address: str) -> JobChat | None:
    """Return how the answer of a job is read, from its log or, where that has gone, its result."""
    log = client.scripts.log
    chat = await log.chat(address)
    if chat is not None:
        return chat
    stored = await log.result(address)
    return None if stored is None else JobResult.parse(stored).finish.chat


class ChoiceSteps:
    """Takes the events of a job's first choice apart, a token at a time."""

    def __init__(self, chat: JobChat | None, address: str) -> None:
        self._messages: JobMessages | None = messages_of(chat, address)

    def of(self, event: Event) -> Iterator[Step]:
        """Yield the steps of an event."""
        if event.finish is not None:
            if self._messages is not None:
                yield from filter(None, self._messages.finish()[:1])
            elif event.told is not None and (told := event.delta):
                yield told
            yield event.finish
            return
        if not event.ends:
            return
        low, start = 0, event.ends[-1] - len(event.text)
        entries = event.logprobs or (None,) * len(event.ends)
        for token_id, end, entry in zip(event.ids, event.ends, entries, strict=True):
            piece = event.text[low : end - start]
            low = max(low, end - start)
            if self._messages is None:
                delta = MessageDelta(piece)
            else:
                delta = self._messages.read(0, piece, [end])
            if delta or entry is not None:
                yield ResponseToken(delta, token_id, piece, entry)
