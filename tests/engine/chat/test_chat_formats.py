"""Formats as values: named, complete, written as they are read, and told on their page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from chat_rows import HEADINGS, chat_rows
from golden_answers import TOOLS

from tokenbus.engine.chat.call_format import CallSyntax
from tokenbus.engine.chat.call_formats import CALL_FORMATS
from tokenbus.engine.chat.chat_format import FORMATS, chat_format, format_named
from tokenbus.engine.chat.message_reader import MessageReader
from tokenbus.engine.chat.reasoning_format import REASONING_FORMATS
from tokenbus.engine.chat.written_message import WrittenCall

PAGE = Path(__file__).resolve().parents[3] / "docs" / "chat-formats.md"
CALLS = (
    WrittenCall("D681PevKs", "get_weather", '{"location": "Köln\\n\\"x\\"", "days": 3}'),
    WrittenCall("D681PevKt", "get_time", "{}"),
)


def test_format_is_found_again_by_its_name() -> None:
    """A name that travels in a record gives the same format back, and another is refused."""
    for each in FORMATS.values():
        assert format_named(each.name) == each
    mixed = chat_format("llama-3", "think")
    assert format_named("llama-3/think") == mixed
    assert mixed.calls is CALL_FORMATS["llama-3"]
    assert mixed.reasoning is REASONING_FORMATS["think"]
    assert format_named("none/none").texts == ()
    for name in ("", "hermes/thought", "other/none"):
        with pytest.raises(KeyError):
            format_named(name)


@pytest.mark.parametrize("name", CALL_FORMATS)
def test_written_calls_are_read_back(name: str) -> None:
    """What a call format writes behind words is read as those words and those calls."""
    written = CALL_FORMATS[name]
    calls = CALLS if written.is_parallel else CALLS[:1]
    text = written.write(calls)
    words = "Wait." if written.has_text_before and not written.opens_in_prompt else ""
    if written.opens_in_prompt:
        text = text.removeprefix(written.call_open)
    reader = MessageReader(
        chat_format(name, "none"), TOOLS, starts_in_reasoning=False, call_id="call{}".format
    )
    reader.push(words + text)
    reader.finish()
    message = reader.message
    assert message.content == words
    assert message.complete_calls == message.calls
    told = [(call.name, json.loads(call.arguments)) for call in message.calls]
    assert told == [(call.name, json.loads(call.arguments)) for call in calls]
    ids = [call.id for call in message.calls]
    kept = ["functions.get_weather:0", "functions.get_time:1"]
    assert ids == (kept if written.keeps_id else ["call0", "call1"])[: len(calls)]


def test_format_of_parameters_has_its_tags() -> None:
    """A format whose arguments stand between tags says which."""
    for written in CALL_FORMATS.values():
        for each in (written, *written.also_read):
            assert (each.parameters is not None) == (each.syntax is CallSyntax.PARAMETERS)


def test_only_objects_are_written_as_arguments() -> None:
    """Arguments that are no JSON object are refused before a model reads them."""
    for arguments in ("[]", '"x"', "{"):
        with pytest.raises(ValueError, match=r"JSON object|Expecting"):
            FORMATS["qwen3"].write_calls([WrittenCall("", "f", arguments)])
    with pytest.raises(ValueError, match="has no calls"):
        FORMATS["phi-4-reasoning"].write_calls(CALLS)


def test_prompt_that_opens_a_thought_is_told_from_others() -> None:
    """A prompt ends in the opening mark, white space aside, or it opens nothing."""
    think = REASONING_FORMATS["think"]
    assert think.is_open_after("<|im_start|>assistant\n<think>\n")
    assert not think.is_open_after("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not think.is_open_after("say <think>, please<|im_end|>\n<|im_start|>assistant\n")


def test_page_shows_the_families_as_they_are() -> None:
    """The first columns of the page's table are those of the values; others may follow."""
    table = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    # Tables of other things come behind it.
    del table[1 + len(chat_rows()) :]
    width = len(HEADINGS)
    assert [tuple(row[:width]) for row in table] == [HEADINGS, *chat_rows()]
