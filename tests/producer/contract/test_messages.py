"""Messages in the contract: read token by token, spelled as OpenAI's stream, kept in a finish."""

from __future__ import annotations

import json

import msgspec
import pytest

from tokenbus.engine.chat.answer_form import typing_part
from tokenbus.engine.chat.delta import CallDelta, MessageDelta
from tokenbus.producer.contract.channel import parse_message
from tokenbus.producer.contract.events import Event, Finish, ToolCall, messages_of
from tokenbus.producer.contract.messages.job_chat import JobChat
from tokenbus.producer.contract.messages.job_messages import JobMessages
from tokenbus.producer.contract.messages.wire_delta import WireDelta, delta_json, joined

CHAT = JobChat("qwen3", {"now": {}})
EVENT = '{"v":2,"job":"j","epoch":1,"choice":0,"from":1,"to":1,"text":"x","ids":[5],"ends":[1]'
DELTAS = [
    MessageDelta(),
    MessageDelta("é\n", "thought"),
    MessageDelta(reasoning='"'),
    MessageDelta(calls=(CallDelta(0, "abcdefghi", "now", '{"a": "ü'), CallDelta(1, arguments="}"))),
    MessageDelta(calls=(CallDelta(2, "x", "wait"),)),
]


@pytest.mark.parametrize("delta", DELTAS)
def test_delta_survives_the_wire(delta: MessageDelta) -> None:
    """What an event says, a reader of it gets, and may say again."""
    wire = delta_json(delta)
    message = f'{EVENT},"delta":{wire}}}'
    event = parse_message(message)
    assert event.delta == delta
    assert event.dump() == json.loads(message)
    assert WireDelta.of(delta).read() == delta


def test_delta_is_spelled_as_openai_spells_it() -> None:
    """Only a call's first delta has id, type and name."""
    assert json.loads(delta_json(DELTAS[3]))["tool_calls"] == [
        {"index": 0, "id": "abcdefghi", "type": "function",
         "function": {"name": "now", "arguments": '{"a": "ü'}},
        {"index": 1, "function": {"arguments": "}"}},
    ]  # fmt: skip


@pytest.mark.parametrize("wire", ["5", "[]", '{"tool_calls":[{}]}', '{"content":7}', "null"])
def test_delta_of_a_stranger_is_none(wire: str) -> None:
    """The event stays; who needs the delta reads the text."""
    event = parse_message(f'{EVENT},"delta":{wire}}}')
    assert (event.text, event.told) == ("x", None)


def test_text_that_nobody_tells_the_parts_of_is_content() -> None:
    """The answer of a model without a format grows delta by delta; held back text is none."""
    plain = Event("j", 1, 1, 1, 1, "x", (5,), (1,))
    assert plain.delta == MessageDelta("x")
    assert plain.deltas == ((1, MessageDelta("x")),)
    assert "delta" not in plain.dump()
    assert msgspec.structs.replace(plain, text="").deltas == ()
    held = msgspec.structs.replace(plain, told=WireDelta())
    assert (held.delta, held.deltas) == (MessageDelta(), ())
    end = msgspec.structs.replace(plain, text="", ids=(), ends=(), finish=Finish("stop"))
    assert (end.delta, end.deltas) == (None, ())


def test_joined_deltas_tell_each_call_once() -> None:
    """Argument texts follow one another by the index of their call."""
    parts = [MessageDelta("a"), DELTAS[3], MessageDelta("b", "r"), DELTAS[3]]
    whole = joined(parts)
    assert (whole.content, whole.reasoning) == ("ab", "r")
    assert [call.arguments for call in whole.calls] == ['{"a": "ü{"a": "ü', "}}"]


def test_events_of_which_one_has_no_delta_are_not_joined() -> None:
    """Else a delta would seem to tell all of the tokens."""
    plain = Event("j", 1, 0, 1, 1, "x", (5,), (1,))
    told = msgspec.structs.replace(plain, start=2, to=2, told=WireDelta(content="x"))
    more = msgspec.structs.replace(told, start=3, to=3)
    assert plain.merged(told) is None
    merged = told.merged(more)
    assert merged is not None
    assert merged.delta == MessageDelta("xx")
    assert merged.after(2).told is None


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["<think>", "\n", "so", "", " be it", "\n", "</think>", "\n\n", "Yes."], 5),
        (["<th", "ink>a", "</think>b"], 2),
        (["Yes", "."], 0),
        (["<think>", "cut"], 2),
        (["<think>", "cut", " <", "/thi"], 2),
    ],
)
def test_tokens_of_reasoning_are_counted(tokens: list[str], expected: int) -> None:
    """By the text that they bring, or that comes next: however many are read at once."""
    ends = [len("".join(tokens[: number + 1])) for number in range(len(tokens))]
    for size in (1, 2, len(tokens)):
        messages = JobMessages(CHAT, "j")
        for first in range(0, len(tokens), size):
            part = "".join(tokens[first : first + size])
            messages.read(0, part, ends[first : first + size])
        messages.finish()
        assert messages.reasoning_tokens == expected


def test_reason_of_a_choice_with_calls_is_told_apart() -> None:
    """The job's own reasons stay what readers of earlier releases understand."""
    call = ToolCall(1, "abcdefghi", "now", "{}", 0)
    cut = ToolCall(2, "abcdefghj", "now", "{}", 0)
    finish = Finish("length", choices=("stop", "stop", "length"), tool_calls=(call, cut), chat=CHAT)
    assert [finish.finish_reason_of(choice) for choice in range(3)] == [
        "stop", "tool_calls", "length",
    ]  # fmt: skip
    wire = json.loads(finish.dump())
    assert (wire["reason"], wire["choices"]) == ("length", ["stop", "stop", "length"])
    assert Finish.parse(finish.dump()) == finish
    plain = json.loads(Finish("stop", choices=("stop",)).dump())
    assert not {"chat", "finish_reasons"} & plain.keys()
    assert "reasoning_tokens" not in plain["usage"]


@pytest.mark.parametrize("text", ["", "5", "{}", '{"format":7}', '{"format":"x","tools":[]}'])
def test_chat_that_cannot_be_read_is_none(text: str) -> None:
    """So is one of a later release, whose format this one does not know."""
    assert JobChat.parse(text) is None
    assert messages_of(JobChat("of-a-later-release"), "j") is None
    assert JobChat.parse(CHAT.dump()) == CHAT


def test_schemas_are_kept_as_far_as_they_tell_types() -> None:
    """Descriptions and bounds are left out, whatever a property is called."""
    schema = {
        "type": "object", "description": "long", "title": "T",
        "properties": {
            "description": {"type": "string", "description": "long", "minLength": 3},
            "n": {"anyOf": [{"type": "integer", "maximum": 1}, {"$ref": "#/$defs/x"}], "title": 3},
            "list": {"type": ["array", "null"], "items": {"enum": [1, "a"], "examples": [1]}},
        },
        "$defs": {"x": {"const": "y", "title": "T"}},
        "shared": {"title": {"type": "string", "description": "kept"}},
    }  # fmt: skip
    assert typing_part(schema) == {
        "type": "object",
        "properties": {
            "description": {"type": "string"},
            "n": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/x"}]},
            "list": {"type": ["array", "null"], "items": {"enum": [1, "a"]}},
        },
        "$defs": {"x": {"const": "y"}},
        "shared": {"title": {"type": "string", "description": "kept"}},
    }
