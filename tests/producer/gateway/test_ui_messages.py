"""UI messages read as messages of a chat, and refused by the path of what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from tokenbus.producer.gateway.wire.api_error import ApiError
from tokenbus.producer.gateway.wire.ui_messages import chat_messages


def _call(state: str | None, **fields: Any) -> dict[str, Any]:
    given = {"type": "tool-stock", "toolCallId": "c1", "state": state, "input": {"of": "lamps"}}
    return given | fields


def _assistant(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return chat_messages([{"role": "assistant", "parts": list(parts)}])


def test_messages_of_people_are_their_texts() -> None:
    """Texts stand in order; what says nothing to a model is left out."""
    given = [
        {
            "role": "system",
            "parts": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}],
        },
        {
            "id": "1",
            "role": "user",
            "parts": [{"type": "text", "text": "a"}, {"type": "data-x", "data": 1}],
        },
        {"role": "user", "parts": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
        {"role": "user", "content": "in the words of version 4"},
    ]
    assert chat_messages(given) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
        {"role": "user", "content": "in the words of version 4"},
    ]


def test_steps_of_the_assistant_are_answers_with_the_results_of_their_calls() -> None:
    """One UI message becomes the turns that the model took."""
    assert _assistant(
        {"type": "step-start"},
        {"type": "reasoning", "text": "I look."},
        {"type": "text", "text": "Let me see."},
        _call("output-available", output={"left": 7}),
        _call("output-error", toolCallId="c2", errorText="no such shelf"),
        {"type": "step-start"},
        {"type": "source-url", "sourceId": "s", "url": "x"},
        {"type": "text", "text": "Seven."},
    ) == [
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "I look.",
            "tool_calls": [
                {
                    "id": name,
                    "type": "function",
                    "function": {"name": "stock", "arguments": '{"of": "lamps"}'},
                }
                for name in ("c1", "c2")
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": '{"left": 7}'},
        {"role": "tool", "tool_call_id": "c2", "content": "no such shelf"},
        {"role": "assistant", "content": "Seven."},
    ]


@pytest.mark.parametrize(
    ("part", "num_calls", "result"),
    [
        (_call("input-streaming"), 0, None),
        (_call("output-error", input=None, errorText="cut"), 0, None),
        (_call("input-available"), 1, None),
        (
            _call("output-denied", approval={"id": "a", "approved": False}),
            1,
            "Tool call execution denied.",
        ),
        (
            _call("output-available", type="dynamic-tool", toolName="stock", output="seven"),
            1,
            "seven",
        ),
    ],
)
def test_calls_are_told_as_far_as_they_came(
    part: dict[str, Any], num_calls: int, result: str | None
) -> None:
    """A call whose input never came was not made; one without a result has none."""
    turns = _assistant({"type": "text", "text": "x"}, part)
    assert len(turns[0].get("tool_calls", [])) == num_calls
    assert [turn["content"] for turn in turns[1:]] == ([] if result is None else [result])


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ([1], "messages.0"),
        ([{"role": "tool", "parts": []}], "messages.0.role"),
        ([{"role": ["user"], "parts": []}], "messages.0.role"),
        ([{"role": "user"}], "messages.0.parts"),
        ([{"role": "user", "parts": [3]}], "messages.0.parts.0"),
        ([{"role": "user", "parts": [{"type": "text", "text": 3}]}], "messages.0.parts.0.text"),
        ([{"role": "user", "parts": [{"type": "hologram"}]}], "messages.0.parts.0.type"),
        ([{"role": "user", "parts": [{"type": "file", "url": "x"}]}], "messages.0.parts.0"),
        ([{"role": "assistant", "parts": [{"type": "file", "url": "x"}]}], "messages.0.parts.0"),
        (
            [{"role": "assistant", "parts": [_call("output-available", toolCallId=1)]}],
            "messages.0.parts.0.toolCallId",
        ),
        (
            [{"role": "assistant", "parts": [_call("output-available", input="x")]}],
            "messages.0.parts.0.input",
        ),
        (
            [{"role": "assistant", "parts": [_call("output-available", type="tool-")]}],
            "messages.0.parts.0.toolName",
        ),
        ([{"role": "assistant", "parts": [_call(None)]}], "messages.0.parts.0.state"),
    ],
)
def test_what_is_wrong_is_refused_by_its_path(messages: Any, param: str) -> None:
    """Every form that is no chat has its place told, and is the caller's mistake."""
    with pytest.raises(ApiError) as refused:
        chat_messages(messages)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert refused.value.message.startswith(param)
