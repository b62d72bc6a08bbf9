"""Answers and schemas made to hurt: what is read stays JSON, Unicode, quiet and quick."""

from __future__ import annotations

import ast
import gc
import json
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from tokenbus.engine.chat.chat_format import FORMATS
from tokenbus.engine.chat.message_reader import MessageReader
from tokenbus.engine.chat.reading.python_literal import python_as_json

if TYPE_CHECKING:
    from tokenbus.engine.chat.written_message import WrittenMessage


def _read(family: str, text: str, schema: Any = None) -> WrittenMessage:
    reader = MessageReader(
        FORMATS[family], {"f": schema or {}}, starts_in_reasoning=False, call_id=str
    )
    for char in text:
        reader.push(char)
    reader.finish()
    return reader.message


def _argument(family: str, text: str, schema: Any = None) -> Any:
    (call,) = _read(family, text, schema).complete_calls
    call.arguments.encode()
    return json.loads(call.arguments)["x"]


def test_half_of_a_surrogate_pair_stays_escaped() -> None:
    """Arguments can be encoded, whatever escapes a model has written."""
    assert _argument("lfm2", '<|tool_call_start|>[f(x="\\ud83d\\ude00")]') == "😀"
    assert _argument("lfm2", '<|tool_call_start|>[f(x="\\ud83d")]') == "\ud83d"
    assert _argument("qwen3", '<tool_call>{"name": "f", "arguments": {"x": "\\ud83d"}}') == "\ud83d"
    text = '<tool_call>{"name": "f", "arguments": "{\\"x\\": \\"\\ud83d\\"}"}</tool_call>'
    assert _read("qwen3", text).content == text


def test_escapes_that_python_does_not_know_are_kept_in_silence() -> None:
    """A pattern in a string is the pattern, and nothing is printed about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _argument("lfm2", r"<|tool_call_start|>[f(x='\d+\\d\'\.')]") == r"\d+\d'\."
        assert _argument("lfm2", r"<|tool_call_start|>[f(x=r'\d')]") == r"\d"


@pytest.mark.parametrize(
    "value",
    ["1e999", "{1, 2}", "b'x'", "1j", "nan", "...", "[" * 150, "-" * 5000 + "1", "9" * 5000],
)
def test_what_json_has_no_value_for_makes_no_call(value: str) -> None:
    """A call with such an argument is content, and no number too large for JSON is let through."""
    text = f"<|tool_call_start|>[f(x={value})]<|tool_call_end|>"
    message = _read("lfm2", text)
    assert not message.complete_calls
    assert message.content == text


def test_value_that_is_too_deep_is_no_argument() -> None:
    """Arguments of a complete call can be read by every reader of JSON."""
    for depth, is_call in ((150, True), (5_000, False)):
        value = "[" * depth + "]" * depth
        text = f'<tool_call>{{"name": "f", "arguments": {{"x": {value}}}}}</tool_call>'
        message = _read("qwen3", text)
        assert bool(message.complete_calls) == is_call
        assert message.content == ("" if is_call else text)


def test_schema_that_leads_back_to_itself_says_nothing() -> None:
    """References in a circle, and ways that double at each, are looked at once."""
    text = "<tool_call>\n<function=f>\n<parameter=x>\n{}\n</parameter>\n</function>\n</tool_call>"
    circle = {"anyOf": [{"$ref": "#/$defs/a"}] * 10}
    nested: dict[str, Any] = {"type": "object"}
    for _ in range(5_000):
        nested = {"anyOf": [nested]}
    for x in ({"$ref": "#/$defs/a"}, {"$ref": "#/properties/x"}, {"$ref": "#/none"}, nested, True):
        schema = {"properties": {"x": x}, "$defs": {"a": circle}}
        assert _argument("qwen3-coder", text, schema) == {}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, "12"),
        ({"type": ["string", "null"]}, "12"),
        ({"type": "integer"}, 12),
        ({"anyOf": [{"type": "null"}, {"$ref": "#/$defs/count"}]}, 12),
        ({"allOf": [{"$ref": "#/$defs/code"}]}, "12"),
        ({"enum": ["12", "13"]}, "12"),
        ({"const": 12}, 12),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, 12),
        ({}, 12),
    ],
)
def test_type_of_a_value_between_tags_is_its_schemas(schema: Any, expected: Any) -> None:
    """The same text is a number or a string, as the tool's schema has it."""
    text = "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>12</arg_value>\n</tool_call>"
    definitions = {"count": {"type": "integer"}, "code": {"type": "string"}}
    found = _argument("glm-4", text, {"properties": {"x": schema}, "$defs": definitions})
    assert found == expected
    assert type(found) is type(expected)


class _Dying:
    """Garbage that parses when it dies, as a lost task does whose traceback is logged."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        self.parse(30)

    def parse(self, depth: int) -> None:
        """Parse from deep inside."""
        if depth:
            self.parse(depth - 1)
        else:
            ast.parse("f(x)[1] + (2, [3])")


def test_literal_is_read_while_garbage_is_collected() -> None:
    """A parse amid a parse breaks CPython 3.11's: a value is not read otherwise because of it."""
    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(50):
            lost = [_Dying() for _ in range(3)]
            del lost
            assert (
                python_as_json("{'a': [1, 2, {'b': (3, True)}]}")
                == '{"a": [1, 2, {"b": [3, true]}]}'
            )
    finally:
        gc.set_threshold(*thresholds)
