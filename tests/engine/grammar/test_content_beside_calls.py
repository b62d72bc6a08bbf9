"""Content by a constraint beside tools: an answer is calls, or it satisfies the constraint."""

from __future__ import annotations

import json
from typing import Any

import pytest
from family_tokenizers import EVERY_TIME, FAMILIES, family_tokenizer
from golden_answers import TOOLS

from tokenbus.engine.chat.chat_format import format_named
from tokenbus.engine.chat.message_reader import MessageReader
from tokenbus.engine.chat.written_message import WrittenCall, WrittenMessage
from tokenbus.engine.errors import GrammarRejected, RequestRejected
from tokenbus.engine.grammar.calls.added_tokens import AddedTokens
from tokenbus.engine.grammar.calls.reasoning_rules import ReasoningRule
from tokenbus.engine.grammar.grammar import CompiledGrammar, GrammarCompiler
from tokenbus.engine.grammar.tool_calls import ToolCalling
from tokenbus.engine.grammar.tools import FunctionTool
from tokenbus.engine.types import GrammarKind, GrammarSpec

EACH = [
    pytest.param(family, marks=() if family in EVERY_TIME else pytest.mark.slow)
    for family in FAMILIES
]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
CALL = WrittenCall("D681PevKs", "get_time", "{}")


class Answers:
    """The answers of a family that a constraint allows."""

    def __init__(
        self, family: str, content: GrammarSpec, choice: str = "auto", *, may_reason: bool = True
    ) -> None:
        self.format = format_named(family)
        self._tokenizer = family_tokenizer(family)
        tools = [FunctionTool(name, schema) for name, schema in TOOLS.items()]
        calling = ToolCalling(tools, self.format, AddedTokens(self._tokenizer))
        rule = ReasoningRule(is_allowed=may_reason)
        spec = calling.grammar(choice, reasoning=rule, content=content)
        end_id: Any = self._tokenizer.eos_token_id
        compiler = GrammarCompiler(self._tokenizer, len(self._tokenizer), (end_id,))
        self._compiled: CompiledGrammar = compiler.compile(spec)

    def allow(self, text: str, *, by_letters: bool = False) -> bool:
        """Tell whether an answer may be drawn, token by token, or with no mark in one token."""
        matcher = self._compiled.matcher()
        parts = text if by_letters else [text]
        ids = [self._tokenizer.encode(part, add_special_tokens=False) for part in parts]
        for token_id in (each for part in ids for each in part):
            if not int(matcher.mask()[token_id // 32]) >> token_id % 32 & 1:
                return False
            matcher.accept(token_id)
        return matcher.is_accepting

    def content(self, text: str) -> str:
        """Return content as the family has it in an answer without reasoning."""
        if self.format.has_channels:
            return f"<|channel|>final<|message|>{text}"
        assert self.format.calls is not None
        return f"all\n{text}" if self.format.calls.opens_in_prompt else text

    def call(self, *calls: WrittenCall) -> str:
        """Return calls as the family writes them."""
        written = self.format.calls
        assert written is not None
        return written.write(calls).removeprefix(
            written.call_open if written.opens_in_prompt else ""
        )

    def read(self, text: str) -> WrittenMessage:
        """Read an answer."""
        reader = MessageReader(self.format, TOOLS, starts_in_reasoning=False, call_id=str)
        reader.push(text)
        reader.finish()
        return reader.message


def schema_of(schema: Any) -> GrammarSpec:
    """Return a constraint by a schema."""
    return GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(schema))


@pytest.mark.parametrize("family", EACH)
def test_answer_is_calls_or_content_by_the_schema(family: str) -> None:
    """Behind reasoning or at once; neither words nor other JSON, and content is read as it is."""
    answers = Answers(family, schema_of(PERSON))
    person = '{"name": "Ann", "age": 7}'
    assert answers.allow(answers.content(person))
    assert answers.allow(answers.call(CALL))
    assert answers.read(answers.content(person)).content == person
    for wrong in ('{"name": "Ann"}', "Hello.", '{"name": "Ann", "age": 7} {}', ""):
        assert not answers.allow(answers.content(wrong))
    assert not answers.allow("Let me look. " + answers.call(CALL))
    reasoning = answers.format.reasoning
    if reasoning is not None and not answers.format.has_channels:
        assert answers.allow(reasoning.write("hm {") + person)
        assert answers.allow(reasoning.write("hm {") + answers.call(CALL))
    asked = Answers(family, schema_of(PERSON), "required", may_reason=False)
    assert asked.allow(answers.call(CALL))
    assert not asked.allow(answers.content(person))


@pytest.mark.parametrize("family", EACH)
def test_content_is_never_taken_for_a_call(family: str) -> None:
    """JSON that says what a call says, and marks in its strings, cannot be drawn."""
    answers = Answers(family, schema_of({}))
    written = answers.format.calls
    assert written is not None
    marks = [text.strip() for text in (written.section_open, written.call_open) if text.strip()]
    told = [f"{mark} get_time{{}}" for mark in marks]
    told.append("".join(answers.call(CALL).splitlines()))
    texts = [json.dumps(each, ensure_ascii=False) for each in told]
    objects = [
        json.dumps({key: "get_weather", "parameters": {"days": "x"}})
        for each in (written, *written.also_read)
        if each.name_key and (key := each.name_key)
    ]
    for text in (*texts, *objects, *(f"[{each}]" for each in objects), '{"name": "x", "n": [1]}'):
        answer = answers.content(text)
        if answers.allow(answer) or answers.allow(answer, by_letters=True):
            message = answers.read(answer)
            assert (message.content, message.calls) == (text, ())


@pytest.mark.parametrize(
    ("kind", "source", "fits", "misses"),
    [
        (GrammarKind.REGEX, "[a-z/]+", "yes/no", "YES"),
        (GrammarKind.CHOICE, '["yes", "no", "<tool_call>"]', "no", "<tool_call>"),
    ],
)
@pytest.mark.parametrize("family", ["qwen3", "llama-3", "gpt-oss"])
def test_patterns_and_choices_stand_beside_tools(
    family: str, kind: GrammarKind, source: str, fits: str, misses: str
) -> None:
    """A text that a reader would take for a mark is none of the choices."""
    answers = Answers(family, GrammarSpec(kind, source))
    assert answers.allow(answers.content(fits))
    assert answers.allow(answers.call(CALL))
    if family == "qwen3" or kind is GrammarKind.REGEX:
        assert not answers.allow(answers.content(misses))


def test_what_cannot_stand_beside_tools_is_refused_by_name() -> None:
    """A grammar in Lark, a schema that nothing satisfies, one that only calls would satisfy."""
    with pytest.raises(RequestRejected, match=r"^grammar: a grammar in Lark"):
        Answers("qwen3", GrammarSpec(GrammarKind.LARK, 'start: "a"'))
    with pytest.raises(GrammarRejected, match=r"^grammar: .*nothing can satisfy"):
        Answers("qwen3", schema_of(False))
    only = {"type": "object", "properties": {"name": {"const": "get_time"}}, "required": ["name"]}
    with pytest.raises(GrammarRejected, match=r"^grammar: .*Unsatisfiable"):
        Answers("llama-3", schema_of(only))
    assert Answers("qwen3", schema_of(only)).allow('{"name": "get_time"}')
