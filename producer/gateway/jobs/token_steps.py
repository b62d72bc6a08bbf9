"""Token steps: the events of a job, one token at a time.

Events join tokens as it happened: live, from the log and from the result they come in different
pieces. What a door writes must be the same from every door and at every time, so it is written
token by token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tokenbus.engine.chat.delta import MessageDelta
from tokenbus.producer.contract.address import JobAddress
from tokenbus.producer.contract.events import messages_of
from tokenbus.producer.contract.result import JobResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.contract.events import Event
    from tokenbus.producer.contract.messages.job_chat import JobChat
    from tokenbus.producer.contract.messages.job_messages import JobMessages


class TokenStep(NamedTuple):
    """One token: its cursor in the job, its choice, and what it adds.

    `text` is what it has released, up to `end`, in characters since the start of the choice;
    `entry` is its logprobs, in the form of events, where they were asked for.
    """

    cursor: int
    choice: int
    token_id: int
    text: str
    end: int
    delta: MessageDelta
    entry: Any = None


class TokenSteps:
    """Takes the events of one job apart, from the first one on."""

    __slots__ = ("_address", "_client", "_messages", "_seen")

    def __init__(self, client: AsyncClient, job_id: str, tenant: str) -> None:
        self._client = client
        self._address = JobAddress(job_id, tenant).text
        # What was read of a job whose answers are messages, until they are read here.
        self._seen: list[Event] = []
        self._messages: JobMessages | None = None

    def content_of(self, event: Event) -> str | None:
        """Return what an event adds that is one token of content; None of any other.

        What is not None was read, as by `of`.
        """
        told = event.told
        if len(event.ids) != 1:
            return None
        if told is None:
            return event.text
        if self._messages is not None or told.reasoning_content or told.tool_calls:
            return None
        self._seen.append(event)
        return told.content or ""

    def at_once(self, event: Event) -> Sequence[TokenStep] | None:
        """Return the tokens of an event; None where the chat of the job has to be asked for."""
        if event.told is None:
            if len(event.ids) == 1:
                return (_step(event, MessageDelta(event.text)),)
            return _split(event, None)
        if self._messages is not None:
            return _split(event, self._messages)
        if len(event.ids) == 1:
            self._seen.append(event)
            return (_step(event, event.told.read()),)
        return None

    async def of(self, event: Event) -> Sequence[TokenStep]:
        """Return the tokens of an event.

        Raises: ServerError, where the chat of the job has to be asked for.
        """
        steps = self.at_once(event)
        if steps is not None:
            return steps
        assert event.told is not None
        messages = messages_of(await self._chat(), self._address)
        if messages is None:
            # Nobody knows how it is written: its tokens are told together.
            return (_step(event, event.told.read(), -1),)
        for seen in self._seen:
            messages.read(seen.choice, seen.text, seen.ends)
        self._seen.clear()
        self._messages = messages
        return _split(event, messages)

    async def prompt_tokens(self) -> int:
        """Ask how many tokens the prompt has, of which some is answered; 0 where nobody tells."""
        log = self._client.scripts.log
        logged = await log.prompt_tokens(self._address)
        if logged is not None:
            return logged
        stored = await log.result(self._address)
        return 0 if stored is None else JobResult.parse(stored).finish.usage.prompt_tokens

    async def _chat(self) -> JobChat | None:
        """Ask how the answers are written: the log, or the result that has replaced it."""
        log = self._client.scripts.log
        chat = await log.chat(self._address)
        if chat is not None:
            return chat
        stored = await log.result(self._address)
        return None if stored is None else JobResult.parse(stored).finish.chat


def _step(event: Event, delta: MessageDelta, number: int = 0) -> TokenStep:
    entry = event.logprobs[number] if event.logprobs else None
    index = event.start if number == 0 else event.to
    return TokenStep(
        index, event.choice, event.ids[number], event.text, event.ends[number], delta, entry
    )


def _split(event: Event, messages: JobMessages | None) -> list[TokenStep]:
    start = event.ends[-1] - len(event.text)
    low, steps = 0, []
    for number, (token_id, end) in enumerate(zip(event.ids, event.ends, strict=True)):
        piece = event.text[low : end - start]
        low = end - start
        if messages is None:
            delta = MessageDelta(piece)
        else:
            delta = messages.read(event.choice, piece, (end,))
        entry = event.logprobs[number] if event.logprobs else None
        index = event.start + number
        steps.append(TokenStep(index, event.choice, token_id, piece, end, delta, entry))
    return steps
