"""Token steps: however tokens were joined to events, they come apart the same."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tokenbus.producer.contract.events import Event
from tokenbus.producer.contract.messages.job_chat import JobChat
from tokenbus.producer.contract.messages.job_messages import JobMessages
from tokenbus.producer.contract.messages.wire_delta import WireDelta
from tokenbus.producer.gateway.jobs.token_steps import TokenStep, TokenSteps

if TYPE_CHECKING:
    from collections.abc import Sequence

CHAT = JobChat("qwen3", {"now": {}})
TEXT = (
    "<think>\nWhere?\n</think>\n\nLook é <to <tool_call>\n"
    '{"name": "now", "arguments": {"at": 1}}\n</tool_call>'
)


class _Log:
    """What a client's log answers."""

    def __init__(self, chat: JobChat | None) -> None:
        self._chat = chat

    async def chat(self, _: str) -> JobChat | None:
        return self._chat

    async def result(self, _: str) -> None:
        return None


def steps_of(chat: JobChat | None) -> TokenSteps:
    """Return what takes the events of a job apart, whose log tells its chat."""
    log = _Log(chat)
    client: Any = type("Client", (), {"scripts": type("Scripts", (), {"log": log})})
    return TokenSteps(client, "j", "default")


def events(sizes: Sequence[int], *, is_told: bool) -> list[Event]:
    """Return a text, a character a token, joined to events of these sizes."""
    messages = JobMessages(CHAT, "j")
    found, start = [], 0
    for size in sizes:
        text = TEXT[start : start + size]
        ends = tuple(range(start + 1, start + size + 1))
        event = Event("j", 1, 0, start + 1, start + size, text, ends, ends)
        if is_told:
            told = WireDelta.of(messages.read(0, text, ends))
            event = msgspec.structs.replace(event, told=told)
        found.append(event)
        start += size
    return found


async def read(sizes: Sequence[int], *, is_told: bool) -> list[TokenStep]:
    """Take a text apart that came in these sizes."""
    steps = steps_of(CHAT)
    return [step for event in events(sizes, is_told=is_told) for step in await steps.of(event)]


@pytest.mark.parametrize("is_told", [True, False])
async def test_steps_are_the_same_however_tokens_were_joined(*, is_told: bool) -> None:
    """Reasoning, content and calls of each token do not depend on those that came with it."""
    one_by_one = await read([1] * len(TEXT), is_told=is_told)
    assert "".join(step.text for step in one_by_one) == TEXT
    assert [step.cursor for step in one_by_one] == list(range(1, len(TEXT) + 1))
    if is_told:
        assert "".join(step.delta.reasoning for step in one_by_one).strip() == "Where?"
        assert any(step.delta.calls for step in one_by_one)
    for first, rest in itertools.product((1, 3, 20), (2, 7)):
        left = len(TEXT) - first
        sizes = [first] + [rest] * (left // rest) + [left % rest] * bool(left % rest)
        assert await read(sizes, is_told=is_told) == one_by_one


async def test_chat_that_nobody_knows_is_told_together() -> None:
    """Where log and result do not say how it is written, an event is one step with its delta."""
    steps = steps_of(None)
    event = events([len(TEXT)], is_told=True)[0]
    [step] = await steps.of(event)
    assert step.cursor == len(TEXT)
    assert event.told is not None
    assert step.delta == event.told.read()
