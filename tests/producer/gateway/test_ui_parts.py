"""Parts of UI messages: their order and ids, for every kind of answer and of end."""

from __future__ import annotations

from typing import Any

import pytest

from tokenbus.engine.chat.delta import CallDelta, MessageDelta
from tokenbus.producer.contract.events import Event, Failure, Finish, ToolCall
from tokenbus.producer.contract.messages.wire_delta import WireDelta
from tokenbus.producer.gateway.wire.ui_parts import UiParts

FINISHED = Finish("stop", choices=("stop",))


def _event(index: int, delta: MessageDelta | None, finish: Finish | None = None) -> Event:
    told = None if delta is None else WireDelta.of(delta)
    return Event("j", 1, 0, index, index - (finish is not None), finish=finish, told=told)


def _parts(deltas: list[MessageDelta], finish: Finish = FINISHED) -> list[dict[str, Any]]:
    parts = UiParts("m")
    told = parts.begin()
    for index, delta in enumerate(deltas, 1):
        told += parts.read(_event(index, delta))
    return told + parts.read(_event(len(deltas) + 1, None, finish))


def test_reasoning_content_and_calls_follow_one_another() -> None:
    """Each part is begun, grown and ended under one id before the next begins."""
    call = CallDelta(0, "c1", "stock", '{"a"')
    finish = Finish("stop", choices=("stop",), tool_calls=(ToolCall(0, "c1", "stock", "{}", 1),))
    told = _parts(
        [
            MessageDelta(reasoning="so "),
            MessageDelta(content="Yes", reasoning="then"),
            MessageDelta(content=".", calls=(call,)),
            MessageDelta(calls=(CallDelta(0, arguments=": 1}"), CallDelta(1, "c2", "sell", "{}"))),
            MessageDelta(content="Done"),
        ],
        finish,
    )
    assert told == [
        {"type": "start", "messageId": "m"},
        {"type": "start-step"},
        {"type": "reasoning-start", "id": "reasoning-0"},
        {"type": "reasoning-delta", "id": "reasoning-0", "delta": "so "},
        {"type": "reasoning-delta", "id": "reasoning-0", "delta": "then"},
        {"type": "reasoning-end", "id": "reasoning-0"},
        {"type": "text-start", "id": "text-1"},
        {"type": "text-delta", "id": "text-1", "delta": "Yes"},
        {"type": "text-delta", "id": "text-1", "delta": "."},
        {"type": "text-end", "id": "text-1"},
        {"type": "tool-input-start", "toolCallId": "c1", "toolName": "stock"},
        {"type": "tool-input-delta", "toolCallId": "c1", "inputTextDelta": '{"a"'},
        {"type": "tool-input-delta", "toolCallId": "c1", "inputTextDelta": ": 1}"},
        {
            "type": "tool-input-available",
            "toolCallId": "c1",
            "toolName": "stock",
            "input": {"a": 1},
        },
        {"type": "tool-input-start", "toolCallId": "c2", "toolName": "sell"},
        {"type": "tool-input-delta", "toolCallId": "c2", "inputTextDelta": "{}"},
        {"type": "tool-input-available", "toolCallId": "c2", "toolName": "sell", "input": {}},
        {"type": "text-start", "id": "text-2"},
        {"type": "text-delta", "id": "text-2", "delta": "Done"},
        {"type": "text-end", "id": "text-2"},
        {"type": "finish-step"},
        {"type": "finish", "finishReason": "tool-calls"},
    ]


def test_call_that_was_cut_is_an_error() -> None:
    """Arguments that the end of the answer cut are never told as the input of a call."""
    cut = MessageDelta(calls=(CallDelta(0, "c", "stock", '{"a": "x'),))
    told = _parts([cut], Finish("length", choices=("length",)))
    assert [part["type"] for part in told[4:]] == ["tool-input-error", "finish-step", "finish"]
    assert told[4]["input"] == '{"a": "x'
    assert told[-1]["finishReason"] == "length"


@pytest.mark.parametrize(
    ("finish", "kinds", "text"),
    [
        (Finish("cancelled"), ["text-end", "finish-step", "abort"], None),
        (Finish("expired"), ["text-end", "error"], "The deadline"),
        (
            Finish("failed", error=Failure("poison", "it crashed")),
            ["text-end", "error"],
            "poison: it",
        ),
    ],
)
def test_answer_that_did_not_finish_says_so(
    finish: Finish, kinds: list[str], text: str | None
) -> None:
    """A stopped answer is an abort, a failed or expired one an error; open text is ended first."""
    told = _parts([MessageDelta("x")], finish)[4:]
    assert [part["type"] for part in told] == kinds
    assert text is None or told[-1]["errorText"].startswith(text)


def test_other_choices_are_not_told() -> None:
    """A UI message has one answer."""
    parts = UiParts("m")
    event = Event("j", 1, 1, 1, 1, "x", (1,), (1,))
    assert parts.read(event) == []
