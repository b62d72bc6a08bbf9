"""Marks that frame an answer: its calls may stand in them, however they are asked for."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from family_tokenizers import family_tokenizer
from golden_answers import TOOLS

from tokenbus.engine.chat.chat_format import format_named
from tokenbus.engine.chat.message_reader import MessageReader
from tokenbus.engine.chat.written_message import WrittenCall
from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.calls.added_tokens import AddedTokens
from tokenbus.engine.grammar.calls.reasoning_rules import ReasoningRule, before_answer
from tokenbus.engine.grammar.calls.watched_calls import watched_content
from tokenbus.engine.grammar.grammar import CompiledGrammar, GrammarCompiler
from tokenbus.engine.grammar.tool_calls import ToolCalling
from tokenbus.engine.grammar.tools import FunctionTool
from tokenbus.engine.types import GrammarKind, GrammarSpec

FRAMED = ("apriel-1.5", "ernie-4.5", "hunyuan")


def compiled(family: str, spec: GrammarSpec) -> CompiledGrammar:
    """Compile a constraint for a family."""
    tokenizer = family_tokenizer(family)
    end_id: Any = tokenizer.eos_token_id
    return GrammarCompiler(tokenizer, len(tokenizer), (end_id,)).compile(spec)


def passes(family: str, grammar: CompiledGrammar, text: str) -> bool:
    """Tell whether a text passes token by token, and may end there."""
    ids = family_tokenizer(family).encode(text, add_special_tokens=False)
    try:
        return grammar.matcher(ids).is_accepting
    except GrammarRejected:
        return False


@pytest.mark.parametrize("family", FRAMED)
@pytest.mark.parametrize("choice", ["auto", "required", "get_time"])
def test_calls_may_stand_in_the_frame(family: str, choice: str) -> None:
    """With and without its marks, behind reasoning or not; what is read is the call alone."""
    chosen = format_named(family)
    assert chosen.calls is not None
    assert chosen.reasoning is not None
    reasoning = chosen.reasoning
    tools = [FunctionTool(name, schema) for name, schema in TOOLS.items()]
    calling = ToolCalling(tools, chosen, AddedTokens(family_tokenizer(family)))
    grammar = compiled(family, calling.grammar(choice))
    call = chosen.calls.write([WrittenCall("", "get_time", "{}")])
    for parts in itertools.product(
        {"", reasoning.write("I see.")},
        {"", reasoning.frame_open},
        [call],
        {"", reasoning.frame_close},
    ):
        answer = "".join(parts)
        assert passes(family, grammar, answer), answer
        reader = MessageReader(chosen, TOOLS, starts_in_reasoning=False, call_id=str)
        reader.push(answer)
        reader.finish()
        assert not reader.message.content
        assert [each.name for each in reader.message.complete_calls] == ["get_time"]
    if choice != "auto":
        for empty in (reasoning.frame_open, reasoning.frame_open + reasoning.frame_close):
            assert not passes(family, grammar, empty)


@pytest.mark.parametrize("family", FRAMED)
def test_constrained_content_may_stand_behind_what_opens_the_frame(family: str) -> None:
    """Thinking or not; what closes a frame or a thought is never inside of a string of JSON."""
    chosen = format_named(family)
    reasoning = chosen.reasoning
    assert reasoning is not None
    tokens = AddedTokens(family_tokenizer(family))
    schema = '{"type": "array", "items": {"type": "string"}}'
    for rule in (ReasoningRule(), ReasoningRule(is_allowed=False)):
        before, watched = before_answer(chosen, tokens, rule), watched_content(chosen, rule).dump()
        spec = GrammarSpec(GrammarKind.JSON_SCHEMA, schema, before, watched)
        if not before:
            continue
        grammar = compiled(family, spec)
        thought = reasoning.write("I see.") if rule.is_allowed else ""
        assert passes(family, grammar, f'{thought}{reasoning.frame_open}["a"]')
        for mark in (*reasoning.closes, *reasoning.frame):
            assert not passes(family, grammar, f'{thought}["{mark}"]')
        assert passes(family, grammar, f'{thought}["{reasoning.closes[0][:-1]}"]')


def test_arguments_may_stand_before_the_name() -> None:
    """Where the model is free to call; asked for, calls have the one order of the format."""
    tokenizer = family_tokenizer("hermes")
    tools = [FunctionTool(name, schema) for name, schema in TOOLS.items()]
    calling = ToolCalling(tools, format_named("hermes"), AddedTokens(tokenizer))
    turned = '<tool_call>\n{"arguments": {"location": "Oslo"}, "name": "get_weather"}\n</tool_call>'
    wrong = turned.replace("get_weather", "get_time").replace("get_time", "no_tool")
    auto = compiled("hermes", calling.grammar("auto"))
    assert passes("hermes", auto, turned)
    assert passes("hermes", auto, turned.replace("location", "unit")) is False
    assert not passes("hermes", auto, wrong)
    assert not passes("hermes", compiled("hermes", calling.grammar("required")), turned)
