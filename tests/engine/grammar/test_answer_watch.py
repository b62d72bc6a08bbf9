"""Keys that repeat in calls and behind reasoning: impossible, whoever's form they stand in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from family_tokenizers import EVERY_TIME, FAMILIES, family_tokenizer

from tokenbus.engine.chat.call_format import CallSyntax
from tokenbus.engine.chat.chat_format import format_named
from tokenbus.engine.chat.written_message import WrittenCall
from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.calls.added_tokens import AddedTokens
from tokenbus.engine.grammar.calls.reasoning_rules import ReasoningRule, before_answer
from tokenbus.engine.grammar.calls.watched_calls import watched_content
from tokenbus.engine.grammar.grammar import CompiledGrammar, GrammarCompiler
from tokenbus.engine.grammar.tool_calls import ToolCalling
from tokenbus.engine.grammar.tools import FunctionTool
from tokenbus.engine.grammar.watching.watched_answer import WatchedAnswer
from tokenbus.engine.types import GrammarKind, GrammarSpec

EACH = [
    pytest.param(family, marks=() if family in EVERY_TIME else pytest.mark.slow)
    for family in FAMILIES
    if (calls := format_named(family).calls) is not None and calls.syntax is not CallSyntax.PYTHON
]
OPEN = {"type": "object"}
TOOLS = [
    FunctionTool(
        "search", {"type": "object", "properties": {"filters": OPEN, "text": {"type": "string"}}}
    ),
    FunctionTool("note", OPEN),
]


def compiled(family: str, spec: GrammarSpec) -> CompiledGrammar:
    """Compile a constraint for a family."""
    tokenizer = family_tokenizer(family)
    end_id: Any = tokenizer.eos_token_id
    return GrammarCompiler(tokenizer, len(tokenizer), (end_id,)).compile(spec)


def left_at(family: str, grammar: CompiledGrammar, text: str) -> str | None:
    """Return what of a text may be drawn up to the first token that may not; None for all of it."""
    tokenizer, matcher = family_tokenizer(family), grammar.matcher()
    ids = tokenizer.encode(text, add_special_tokens=False)
    for idx, token_id in enumerate(ids):
        if not int(matcher.mask()[token_id // 32]) >> token_id % 32 & 1:
            with pytest.raises(GrammarRejected):
                matcher.accept(token_id)
            return str(tokenizer.decode(ids[:idx]))
        matcher.accept(token_id)
    assert matcher.is_accepting
    return None


def calls_of(family: str, choice: str = "auto") -> CompiledGrammar:
    """Return the grammar of calls of the open tools."""
    tokens = AddedTokens(family_tokenizer(family))
    calling = ToolCalling(TOOLS, format_named(family), tokens)
    return compiled(family, calling.grammar(choice))


def written(family: str, *calls: tuple[str, str]) -> str:
    """Write calls whose argument `filters` has a word for each key that is to be looked at."""
    chat_format = format_named(family)
    assert chat_format.calls is not None
    listed = [WrittenCall("D681PevKs", name, arguments) for name, arguments in calls]
    text = chat_format.calls.write(listed)
    return text.removeprefix(
        chat_format.calls.call_open if chat_format.calls.opens_in_prompt else ""
    )


@pytest.mark.parametrize("family", EACH)
def test_no_key_of_an_argument_comes_twice(family: str) -> None:
    """At any depth, behind words and reasoning with braces in it; each object has its own keys."""
    chat_format = format_named(family)
    assert chat_format.calls is not None
    apart = '{"filters": {"one": {"one": 1}, "two": [{"one": 2}, {"one": 3}]}}'
    calls = [("search", apart)] * (2 if chat_format.calls.is_parallel else 1)
    text = written(family, *calls)
    reasoning = chat_format.reasoning
    thoughts = [""]
    if reasoning is not None and not chat_format.has_channels:
        thoughts.append(reasoning.write('{"one": 1, "one": {'))
    if chat_format.has_channels:
        thoughts.append(
            '<|channel|>analysis<|message|>{"one": 1, "one": {<|end|><|start|>assistant'
        )
    for choice in ("auto", "required", "search"):
        grammar = calls_of(family, choice)
        for thought in thoughts:
            assert left_at(family, grammar, thought + text) is None
            stopped = left_at(family, grammar, thought + text.replace("two", "one"))
            assert stopped is not None
            assert stopped.endswith("one")


@pytest.mark.parametrize("family", EACH)
def test_no_argument_that_nobody_lists_comes_twice(family: str) -> None:
    """In JSON and between tags, whose names are free where the schema has none."""
    grammar = calls_of(family, "note")
    text = written(family, ("note", '{"one": 1, "two": 2}'))
    assert left_at(family, grammar, text) is None
    stopped = left_at(family, grammar, text.replace("two", "one"))
    assert stopped is not None
    assert stopped.endswith("one")


@pytest.mark.parametrize("family", [*(f for f in FAMILIES if f in EVERY_TIME), "qwq"])
@pytest.mark.parametrize("starts_inside", [False, True])
def test_no_key_comes_twice_behind_reasoning(family: str, starts_inside: bool) -> None:
    """A schema that is open to other keys, behind a block that the prompt or the model opens."""
    chat_format = format_named(family)
    reasoning = chat_format.reasoning
    if reasoning is None or (chat_format.has_channels and starts_inside):
        pytest.skip("no reasoning, or none that a prompt opens")
    rule = ReasoningRule(starts_inside)
    before = before_answer(chat_format, AddedTokens(family_tokenizer(family)), rule)
    watched = watched_content(chat_format, rule).dump()
    spec = GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(OPEN), before, watched)
    grammar = compiled(family, spec)
    thought = reasoning.write('{"a": {"a": ')
    if chat_format.has_channels:
        thought += "<|start|>assistant<|channel|>final<|message|>"
    if starts_inside:
        thought = thought.removeprefix(reasoning.open)
    assert left_at(family, grammar, thought + '{"a": 1, "b": {"a": 2}}') is None
    stopped = left_at(family, grammar, thought + '{"a": 1, "a": {"a": 2}}')
    assert stopped is not None
    assert stopped.endswith(', "a')


def test_strings_between_tags_may_hold_anything_twice() -> None:
    """A string that looks like JSON is a string; words before calls are words."""
    grammar = calls_of("qwen3-coder")
    like_json = '{"a": 1, "a": 2} and {"a", "a"'
    text = f"<tool_call>\n<function=search>\n<parameter=text>\n{like_json}\n</parameter>\n"
    text += "</function>\n</tool_call>"
    assert left_at("qwen3-coder", grammar, text) is None
    assert left_at("qwen3-coder", grammar, f"{like_json}\n{text}") is None
    assert left_at("qwen3", calls_of("qwen3"), like_json) is None


def test_what_is_watched_travels_as_json() -> None:
    """The process that compiles reads what the one that asks has written."""
    tokens = AddedTokens(family_tokenizer("deepseek-v3.2"))
    spec = ToolCalling(TOOLS, format_named("deepseek-v3.2"), tokens).grammar()
    watched = WatchedAnswer.parse(spec.watched)
    assert watched.dump() == spec.watched
    assert watched.tags is not None
    assert watched.tags.texts == {"search": ["text"], "note": []}
    closed = [FunctionTool("now", {})]
    assert not ToolCalling(closed, format_named("qwen3"), tokens).grammar().watched
