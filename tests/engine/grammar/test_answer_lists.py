"""Lists with `uniqueItems` in calls, behind reasoning and beside calls: no item comes twice."""

from __future__ import annotations

import json
from typing import Any

import pytest
from drawn_outputs import drawn_output
from family_tokenizers import EVERY_TIME, FAMILIES, family_tokenizer

from tokenbus.engine.chat.chat_format import format_named
from tokenbus.engine.chat.written_message import WrittenCall
from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.calls.added_tokens import AddedTokens
from tokenbus.engine.grammar.calls.reasoning_rules import ReasoningRule, before_answer
from tokenbus.engine.grammar.calls.watched_calls import follows_lists, watched_content
from tokenbus.engine.grammar.grammar import CompiledGrammar, GrammarCompiler
from tokenbus.engine.grammar.tool_calls import ToolCalling
from tokenbus.engine.grammar.tools import FunctionTool
from tokenbus.engine.grammar.watching.watched_answer import WatchedAnswer
from tokenbus.engine.types import GrammarKind, GrammarSpec

FOLLOWED = [
    pytest.param(family, marks=() if family in EVERY_TIME else pytest.mark.slow)
    for family in FAMILIES
    if (calls := format_named(family).calls) is not None and follows_lists(calls.syntax)
]
OTHERS = [
    family
    for family in FAMILIES
    if (calls := format_named(family).calls) is not None and not follows_lists(calls.syntax)
]
SET = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
# Arguments with the keys of calls in them, and a tool beside whose list may have equal items.
TOOLS = [
    FunctionTool(
        "tag",
        {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "tags": SET,
                "more": {"type": "object", "properties": {"arguments": SET}},
            },
            "required": ["tags"],
        },
    ),
    FunctionTool("list", {"type": "object", "properties": {"tags": {**SET, "uniqueItems": False}}}),
]
CONTENT = json.dumps({"type": "object", "properties": {"set": SET}, "additionalProperties": False})

Call = tuple[str, dict[str, Any]]


def compiled(family: str, spec: GrammarSpec) -> CompiledGrammar:
    """Compile a constraint for a family."""
    tokenizer = family_tokenizer(family)
    end_id: Any = tokenizer.eos_token_id
    return GrammarCompiler(tokenizer, len(tokenizer), (end_id,)).compile(spec)


def calling_of(family: str) -> ToolCalling:
    """Return the tools for a family."""
    return ToolCalling(TOOLS, format_named(family), AddedTokens(family_tokenizer(family)))


def is_whole(family: str, grammar: CompiledGrammar, text: str) -> bool:
    """Tell whether a text may be drawn to its end; what may not is no item of before."""
    tokenizer, matcher = family_tokenizer(family), grammar.matcher()
    for token_id in tokenizer.encode(text, add_special_tokens=False):
        if not int(matcher.mask()[token_id // 32]) >> token_id % 32 & 1:
            with pytest.raises(GrammarRejected, match="comes twice"):
                matcher.accept(token_id)
            return False
        matcher.accept(token_id)
    assert matcher.is_accepting
    return True


def written(family: str, *calls: Call) -> str:
    """Write calls as a family does."""
    chosen = format_named(family).calls
    assert chosen is not None
    listed = [WrittenCall("D681PevKs", name, json.dumps(given)) for name, given in calls]
    return chosen.write(listed).removeprefix(chosen.call_open if chosen.opens_in_prompt else "")


@pytest.mark.parametrize("family", FOLLOWED)
def test_no_item_of_an_argument_comes_twice(family: str) -> None:
    """Each call by the schema of its own tool, however calls are asked for."""
    chosen = format_named(family).calls
    assert chosen is not None
    good: Call = ("tag", {"name": "list", "tags": ["a", "b", "a b"]})
    bad: Call = ("tag", {"tags": ["a", "a"]})
    deep: Call = ("tag", {"tags": ["a"], "more": {"arguments": ["x", "x"]}})
    free: Call = ("list", {"tags": ["a", "a"]})
    for choice in ("auto", "required", "tag"):
        grammar = compiled(family, calling_of(family).grammar(choice))
        cases: list[tuple[tuple[Call, ...], bool]] = [
            ((good,), True),
            ((bad,), False),
            ((deep,), False),
        ]
        if choice != "tag":
            cases.append(((free,), True))
        if chosen.is_parallel:
            between = good if choice == "tag" else free
            cases += [((between, good), True), ((good, between, bad), False)]
        for calls, may_pass in cases:
            told = f"{choice}: {written(family, *calls)}"
            assert is_whole(family, grammar, written(family, *calls)) is may_pass, told


@pytest.mark.parametrize("family", ["gpt-oss", "qwen3", "qwen3-coder"])
def test_lists_of_arguments_can_be_ended(family: str) -> None:
    """Nothing is begun that could only be an item of before: a list of all labels but one."""
    labels = {"enum": [f"v{idx}" for idx in range(24)]}
    few = {**SET, "items": labels, "minItems": 23}
    schema = {"type": "object", "properties": {"few": few}, "required": ["few"]}
    tools = [FunctionTool("tag", {**schema, "additionalProperties": False})]
    tokenizer = family_tokenizer(family)
    calling = ToolCalling(tools, format_named(family), AddedTokens(tokenizer))
    rule = ReasoningRule(is_allowed=False)
    spec = calling.grammar("tag", parallel=False, reasoning=rule)
    grammar, num_whole = compiled(family, spec), 0
    for seed in range(3):
        matcher = grammar.matcher()
        text = drawn_output(matcher, tokenizer, seed, 1_000)
        if not matcher.is_accepting:
            continue
        found = [label for label in labels["enum"] if f'"{label}"' in text]
        assert text.count('"v') == len(found) >= 23
        num_whole += 1
    # A message of gpt-oss may think for ever before.
    assert num_whole or family == "gpt-oss"


@pytest.mark.parametrize("family", ["gpt-oss", "hunyuan", "qwen3"])
@pytest.mark.parametrize("starts_inside", [False, True])
def test_no_item_comes_twice_behind_reasoning(family: str, starts_inside: bool) -> None:
    """The thought before may hold anything."""
    chat_format = format_named(family)
    reasoning = chat_format.reasoning
    assert reasoning is not None
    if chat_format.has_channels and starts_inside:
        pytest.skip("no prompt opens this block")
    rule = ReasoningRule(starts_inside)
    before = before_answer(chat_format, AddedTokens(family_tokenizer(family)), rule)
    watched = watched_content(chat_format, rule).dump()
    grammar = compiled(family, GrammarSpec(GrammarKind.JSON_SCHEMA, CONTENT, before, watched))
    thought = reasoning.write('{"set": ["a", "a", "')
    if chat_format.has_channels:
        thought += "<|start|>assistant<|channel|>final<|message|>"
    if starts_inside:
        thought = thought.removeprefix(reasoning.open)
    for framed in {"", reasoning.frame_open}:
        assert is_whole(family, grammar, f'{thought}{framed}{{"set": ["a", "b"]}}')
        assert not is_whole(family, grammar, f'{thought}{framed}{{"set": ["a", "a"]}}')


@pytest.mark.parametrize("family", ["gpt-oss", "hunyuan", "qwen3"])
def test_no_item_of_content_beside_calls_comes_twice(family: str) -> None:
    """Content by a schema where the model may call instead."""
    spec = GrammarSpec(GrammarKind.JSON_SCHEMA, CONTENT)
    grammar = compiled(family, calling_of(family).grammar("auto", content=spec))
    header = "<|channel|>final<|message|>" if format_named(family).has_channels else ""
    assert is_whole(family, grammar, header + '{"set": ["a", "b"]}')
    assert not is_whole(family, grammar, header + '{"set": ["a", "a"]}')
    assert not is_whole(family, grammar, written(family, ("tag", {"tags": ["a", "a"]})))


@pytest.mark.parametrize("family", OTHERS)
def test_lists_in_python_and_bare_keys_are_refused(family: str) -> None:
    """These are not followed; the refusal names tool and place, and few lists are written out."""
    with pytest.raises(GrammarRejected, match=r"tools\.0\.\S+: .*'uniqueItems' at #/properties/t"):
        calling_of(family)
    few = {**SET, "items": {"enum": ["a", "b"]}}
    tools = [FunctionTool("tag", {"type": "object", "properties": {"tags": few}})]
    if format_named(family).calls is not None and family not in ("functiongemma", "gemma-4"):
        ToolCalling(tools, format_named(family), AddedTokens(family_tokenizer(family))).grammar()


def test_other_ways_of_calling_are_closed_where_lists_are_followed() -> None:
    """Llama writes Python behind a mark too, where nobody could follow a list."""
    tokenizer = family_tokenizer("llama-3")
    python = '<|python_tag|>tag.call(tags=["a", "a"])'
    closed = compiled("llama-3", calling_of("llama-3").grammar("auto"))
    ids = tokenizer.encode(python, add_special_tokens=False)
    with pytest.raises(GrammarRejected):
        closed.matcher(ids)
    free = ToolCalling(TOOLS[1:], format_named("llama-3"), AddedTokens(tokenizer)).grammar("auto")
    free_ids = tokenizer.encode(python.replace("tag.call", "list.call"), add_special_tokens=False)
    assert compiled("llama-3", free).matcher(free_ids).is_accepting


def test_followed_lists_travel_as_json() -> None:
    """The process that compiles reads what the one that asks has written."""
    watched = WatchedAnswer.parse(calling_of("deepseek-v3").grammar().watched)
    assert watched.lists is not None
    assert [*watched.lists.tools] == ["tag"]
    assert watched.lists.names == ["tag", "list"]
    assert WatchedAnswer.parse(watched.dump()) == watched
