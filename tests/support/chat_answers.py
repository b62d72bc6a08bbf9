"""Made-up answers in every chat format, with what they mean: for tests that need many of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from golden_answers import TOOLS, joined

from tokenbus.engine.chat.call_format import CallSyntax
from tokenbus.engine.chat.chat_format import FORMATS
from tokenbus.engine.chat.message_reader import MessageReader
from tokenbus.engine.chat.written_message import WrittenCall, WrittenMessage

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from tokenbus.engine.chat.chat_format import ChatFormat

_PIECES = [
    *("a", "Z", "7", " ", "  ", "\n", "\n\n", "\t", "é", "東京", "🌤", "\u00a0", "0", "-1.5e3"),
    *("<", ">", "</", "{", "}", "[", "]", "(", ")", '"', "'", "\\", "`", "```", "=", ",", ":", ";"),
    *("null", "true", "<b>", "{}", "[]", "\\n", "\\u00e9", ">>", "<tool", "</para", "to=", "name"),
]


@dataclass
class MadeAnswer:
    """An answer with its parts, as it was put together."""

    chat_format: ChatFormat
    text: str
    starts_in_reasoning: bool
    content: str
    reasoning: str
    calls: list[tuple[str, str]]

    def read(self, pieces: Iterable[str]) -> WrittenMessage:
        """Read the answer in pieces, and check that the deltas add up to the message."""
        reader = MessageReader(
            self.chat_format,
            TOOLS,
            starts_in_reasoning=self.starts_in_reasoning,
            call_id="call{}".format,
        )
        deltas = [*map(reader.push, pieces), reader.finish()]
        message = reader.message
        for call in message.complete_calls:
            assert isinstance(json.loads(call.arguments), dict)
        calls = [(call.id, call.name, call.arguments) for call in message.calls]
        assert joined(deltas) == (message.content, message.reasoning, calls)
        return message


def made_answer(family: str, random: Random) -> MadeAnswer:
    """Make up an answer of a family: a thought, words and calls, or some of them."""
    chat_format = FORMATS[family]
    written = chat_format.calls
    reasoning, thought, opened = "", "", False
    if chat_format.reasoning and random.random() < 0.6:
        opened = not chat_format.has_channels and random.random() < 0.5
        reasoning = _words(random, chat_format)
        thought = chat_format.reasoning.write(reasoning)
        if opened:
            thought = thought.removeprefix(chat_format.reasoning.open)
    calls = [_call(random, chat_format) for _ in range(random.choice((0, 1, 1, 2, 3)))]
    calls = calls if written else []
    content = _words(random, chat_format)
    if calls and (not written or not written.has_text_before or random.random() < 0.5):
        content = ""
    text = thought + _with_content(chat_format, content, thought)
    if written:
        text += chat_format.write_calls(calls)
    if written and written.opens_in_prompt:
        text = text.removeprefix(written.call_open)
    told = [(call.name, call.arguments) for call in calls]
    return MadeAnswer(chat_format, text, opened, content, reasoning, told)


def _with_content(chat_format: ChatFormat, content: str, thought: str) -> str:
    """Return words as they stand in an answer, between a thought and calls."""
    written = chat_format.calls
    if chat_format.has_channels:
        role = "<|start|>assistant" if thought else ""
        return f"{role}<|channel|>commentary<|message|>{content}<|end|>" if content else role
    if written and written.content_name and content:
        return f"{written.call_open}{written.content_name}{written.name_close}{content}"
    return content


def _words(random: Random, chat_format: ChatFormat) -> str:
    """Return words with no mark in them, and at their ends no beginning of one or of a call."""
    marks = {part for text in chat_format.texts for part in text.split() if len(part) > 1}
    while True:
        text = "".join(random.choices(_PIECES, k=random.randint(1, 12))).strip() + "."
        if text[0].isalpha() and not any(mark in text for mark in marks):
            return text


def _call(random: Random, chat_format: ChatFormat) -> WrittenCall:
    name = random.choice(list(TOOLS))
    properties = TOOLS[name]["properties"]
    keys = [key for key in properties if random.random() < 0.7]
    arguments = {key: _value(random, properties[key], chat_format) for key in keys}
    spacing = random.choice([None, (",", ":")])
    is_ascii = random.random() < 0.3
    text = json.dumps(arguments, ensure_ascii=is_ascii, separators=spacing)
    return WrittenCall("D681PevKs", name, text)


def _value(random: Random, schema: dict[str, Any], chat_format: ChatFormat) -> Any:
    match schema:
        case {"type": "string"} | {"anyOf": _}:
            return _string(random, chat_format)
        case {"enum": values}:
            return random.choice(values)
        case {"type": "integer"}:
            return random.choice([0, -1, 7, 10**15])
        case {"type": "number"}:
            return random.choice([0, -1.5, 1e-7, 1e22, 3])
        case {"type": "boolean"}:
            return random.random() < 0.5
        case {"type": "array"}:
            return [_string(random, chat_format) for _ in range(random.randint(0, 3))]
    return {"a": _string(random, chat_format), "b": [1, None, {"c": random.choice([[], {}, True])}]}


def _string(random: Random, chat_format: ChatFormat) -> str:
    """Return any string; where strings have no escapes, one without the tag that closes it."""
    text = "".join(random.choices(_PIECES, k=random.randint(0, 6)))
    written = chat_format.calls
    if written and written.syntax is CallSyntax.PARAMETERS and text.strip() in {"null", "\n"}:
        return ""
    if written and written.parameters and written.parameters.raw_close:
        return text.replace(written.parameters.raw_close, "")
    return text
