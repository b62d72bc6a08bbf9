"""Grammars of calls, for every family: what its models write, typed by hand, passes token by token.

The tokenizer is a small one to which the marks of the family were added as tokens, as its models
have them, special to half of the families.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from family_tokenizers import ANSWERS, EVERY_TIME, FAMILIES, family_tokenizer
from golden_answers import TOOLS, Golden

from tokenbus.engine.chat.chat_format import format_named
from tokenbus.engine.chat.written_message import WrittenCall
from tokenbus.engine.errors import GrammarRejected, RequestRejected
from tokenbus.engine.grammar.calls.added_tokens import AddedTokens
from tokenbus.engine.grammar.calls.call_rules import MAX_CALLS
from tokenbus.engine.grammar.calls.reasoning_rules import (
    ReasoningRule,
    before_answer,
    free_answer,
)
from tokenbus.engine.grammar.grammar import GrammarCompiler
from tokenbus.engine.grammar.tool_calls import ToolCalling
from tokenbus.engine.grammar.tools import FunctionTool
from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from tokenbus.engine.chat.call_format import CallFormat

EACH = [
    pytest.param(family, marks=() if family in EVERY_TIME else pytest.mark.slow)
    for family in FAMILIES
]


@cache
def compiler_of(family: str) -> GrammarCompiler:
    """Return the compiler of a family."""
    tokenizer = family_tokenizer(family)
    end_id: Any = tokenizer.eos_token_id
    return GrammarCompiler(tokenizer, len(tokenizer), (end_id,))


@cache
def calling_of(family: str) -> ToolCalling:
    """Return the tools of the golden answers, for a family."""
    tools = [FunctionTool(name, schema) for name, schema in TOOLS.items()]
    return ToolCalling(tools, format_named(family), AddedTokens(family_tokenizer(family)))


@cache
def spec_of(family: str, choice: str, starts_inside: bool) -> GrammarSpec:
    """Return a constraint."""
    rule = ReasoningRule(starts_inside=starts_inside)
    return calling_of(family).grammar(choice, reasoning=rule)


def passes(golden: Golden, choice: str) -> str:
    """Return where an answer leaves the grammar, "" if it passes from its beginning to its end."""
    tokenizer = family_tokenizer(golden.family)
    spec = spec_of(golden.family, choice, golden.title.endswith("[in reasoning]"))
    matcher = compiler_of(golden.family).compile(spec).matcher()
    ids = tokenizer.encode(golden.answer, add_special_tokens=False)
    for idx, token_id in enumerate(ids):
        try:
            matcher.accept(token_id)
        except GrammarRejected:
            return f"{choice}: {golden.title}: after {tokenizer.decode(ids[:idx])[-60:]!r}"
    return "" if matcher.is_accepting else f"{choice}: {golden.title}: it may not end"


# What readers take and grammars steer away from: calls that were cut, escapes of JSON that need
# not be, keys and arguments in another order, values of another type, several calls of a family
# that has one, text behind calls.
READ_ALONE = (
    "cut", "not closed", "unicode", "arguments first", "arguments before", "arguments as text",
    "of another type", "by place", "by the tag", "two calls", "two blocks", "two thoughts",
    "behind", "a list of two", "JSON", "line breaks", "blanks", "parameters and type",
    "Python's spelling", "the mark is written too", "numbers as strings", "nested arguments",
    "do not tell",
)  # fmt: skip


def _in_full(golden: Golden) -> bool:
    """Tell whether an answer has calls, all of them complete."""
    return bool(golden.calls) and all(is_complete for _, _, is_complete in golden.calls)


@pytest.mark.parametrize("family", EACH)
def test_what_models_of_a_family_write_passes(family: str) -> None:
    """`auto` lets through calls with text and reasoning before them, whatever their spacing."""
    answers = [each for each in ANSWERS if each.family == family and _in_full(each)]
    told = [passes(each, "auto") for each in answers]
    unknown = [reason for reason in filter(None, told) if not any(t in reason for t in READ_ALONE)]
    assert not unknown
    assert told.count("") >= len(told) / 2


@pytest.mark.parametrize("family", EACH)
def test_constraints_and_bounds_stand_behind_reasoning(family: str) -> None:
    """Without tools: a constrained answer, and a bound on reasoning alone, both compile."""
    chat_format, tokens = format_named(family), AddedTokens(family_tokenizer(family))
    answer = "7"
    if chat_format.has_channels:
        answer = f"<|channel|>final<|message|>{answer}"
    for rule in (ReasoningRule(), ReasoningRule(max_tokens=3)):
        before = ""
        with suppress(RequestRejected):  # No token closes the reasoning of some.
            before = before_answer(chat_format, tokens, rule)
            free = compiler_of(family).compile(free_answer(chat_format, tokens, rule))
            ids = family_tokenizer(family).encode(answer, add_special_tokens=False)
            assert free.matcher(ids).is_accepting
        spec = GrammarSpec(GrammarKind.REGEX, "[0-9]", before)
        ids = family_tokenizer(family).encode(answer, add_special_tokens=False)
        if before or not chat_format.has_channels:
            assert compiler_of(family).compile(spec).matcher(ids).is_accepting


@pytest.mark.parametrize("family", EACH)
def test_calls_as_the_format_writes_them_pass(family: str) -> None:
    """Every choice takes the canonical spelling, nested, empty and with awkward texts in it."""
    written = format_named(family).calls
    assert written is not None
    told = [
        ("search", '{"query": "a \\"b\\" [c]", "filters": {"n": 1}, "limit": 3}'),
        ("get_time", "{}"),
        ("get_weather", '{"location": "São Paulo", "unit": "celsius", "days": 2}'),
    ]
    calls = [WrittenCall("D681PevKs", *each) for each in told]
    for listed in ([calls[0]], [calls[1]], [calls[2]], calls[: 3 if written.is_parallel else 1]):
        golden = Golden(family, "", written.write(listed).removeprefix(_in_prompt(written)))
        names = {call.name for call in listed}
        for choice in ("auto", "required", *(names if len(names) == 1 else ())):
            assert not passes(golden, choice)


@pytest.mark.parametrize("family", EACH)
def test_calls_that_are_asked_for_have_one_spelling(family: str) -> None:
    """No white space can be drawn that the format does not write: no token is lost on it."""
    written = format_named(family).calls
    assert written is not None
    arguments = '{"unit": "celsius", "days": 2}'
    call = WrittenCall("D681PevKs", "get_weather", arguments)
    tokenizer, rule = family_tokenizer(family), ReasoningRule(is_allowed=False)
    text = written.write([call]).removeprefix(_in_prompt(written))
    blanks = {tokenizer.encode(blank)[0] for blank in (" ", "\n", "\t")}
    closed = TOOLS["get_weather"] | {"additionalProperties": False}
    tools = [FunctionTool("get_weather", closed)]
    calling = ToolCalling(tools, format_named(family), AddedTokens(tokenizer))
    for choice in ("required", "get_weather"):
        spec = calling.grammar(choice, parallel=False, reasoning=rule)
        matcher = compiler_of(family).compile(spec).matcher()
        for token_id in tokenizer.encode(text, add_special_tokens=False):
            mask = matcher.mask()
            allowed = {blank for blank in blanks if int(mask[blank // 32]) >> blank % 32 & 1}
            assert allowed <= {token_id}
            matcher.accept(token_id)
        assert matcher.is_accepting


@pytest.mark.parametrize("family", EACH)
@pytest.mark.parametrize("choice", ["auto", "required", "get_time"])
def test_number_of_calls_is_bounded(family: str, choice: str) -> None:
    """One where the request or the family has it so, 32 otherwise, however they are asked for."""
    written = format_named(family).calls
    assert written is not None
    tokenizer = family_tokenizer(family)
    for parallel in (True, False):
        most = MAX_CALLS if parallel and written.is_parallel else 1
        compiled = compiler_of(family).compile(calling_of(family).grammar(choice, parallel))
        for num_calls in (most, most + 1):
            calls = [WrittenCall("D681PevKs", "get_time", "{}")] * num_calls
            text = written.write(calls).removeprefix(_in_prompt(written))
            ids = tokenizer.encode(text, add_special_tokens=False)
            try:
                assert compiled.matcher(ids).is_accepting is (num_calls == most)
            except GrammarRejected:
                assert num_calls > most


@pytest.mark.parametrize("family", EACH)
def test_calls_of_no_tool_do_not_pass(family: str) -> None:
    """What begins as a call is one: its name and its arguments are those of a tool."""
    written = format_named(family).calls
    assert written is not None
    call = WrittenCall("", "get_weather", '{"location": "Oslo", "unit": "celsius", "days": 2}')
    text = written.write([call]).removeprefix(_in_prompt(written))
    for wrong in (
        text.replace("celsius", "kelvins"),
        text.replace("location", "locution"),
        text.replace("get_weather", "get_whether"),
    ):
        assert passes(Golden(family, "", wrong), "required")
    if not written.opens_in_prompt:
        assert passes(Golden(family, "", text.replace("celsius", "kelvins")), "auto")


@pytest.mark.parametrize("family", EACH)
def test_words_alone_pass_where_nobody_asks_for_calls(family: str) -> None:
    """JSON, white space and braces may begin an answer; `required` has no answer without a call."""
    opening = "all\n" if family == "functionary-v3.2" else ""
    for words in ("Hello.", '{"answer": 42}', "\n\n- one\n", "[1, 2]", " {x}", "a < b"):
        golden = Golden(family, "", opening + words)
        assert not passes(golden, "auto")
        assert passes(golden, "required")


@pytest.mark.parametrize("family", EACH)
def test_calls_stand_behind_reasoning(family: str) -> None:
    """Reasoning may hold what calls begin with, and may be as long as its bound says."""
    chosen = format_named(family)
    if chosen.reasoning is None:
        pytest.skip("the family does not reason")
    assert chosen.calls is not None
    again = "<|start|>assistant" if chosen.has_channels else ""
    call = chosen.calls.write([WrittenCall("", "get_time", "{}")])
    thought = chosen.reasoning.write("so {x} or [y]?") + again + call
    for choice in ("auto", "required", "get_time"):
        assert not passes(Golden(family, "", thought), choice)


@pytest.mark.parametrize("family", EACH)
def test_reasoning_is_closed_where_its_bound_is_reached(family: str) -> None:
    """No token of a thought comes behind the bound, and the call then stands behind it."""
    chosen = format_named(family)
    if chosen.reasoning is None:
        pytest.skip("the family does not reason")
    assert chosen.calls is not None
    tokenizer, rule = family_tokenizer(family), ReasoningRule(max_tokens=8)
    if not AddedTokens(tokenizer).first_in(chosen.reasoning.closes[0]):
        with pytest.raises(RequestRejected, match="max_reasoning_tokens"):
            calling_of(family).grammar("required", reasoning=rule)
        return
    compiled = compiler_of(family).compile(calling_of(family).grammar("required", reasoning=rule))
    again = "<|start|>assistant" if chosen.has_channels else ""
    call = chosen.calls.write([WrittenCall("", "get_time", "{}")])
    rest = f"{chosen.reasoning.close.strip()}{again}{call}"
    for size, is_taken in ((0, True), (7, True), (9, False)):
        text = f"{chosen.reasoning.open.strip()}{'x' * size}{rest}"
        ids = tokenizer.encode(text, add_special_tokens=False)
        try:
            assert compiled.matcher(ids).is_accepting is is_taken
        except GrammarRejected:
            assert not is_taken


@pytest.mark.parametrize("choice", ["auto", "required", "get_weather"])
@pytest.mark.parametrize("starts_inside", [False, True])
@pytest.mark.parametrize(
    "family",
    ["apertus", *(pytest.param(name, marks=pytest.mark.slow) for name in ("command-a", "kimi-k2"))],
)
def test_calls_close_reasoning(family: str, choice: str, *, starts_inside: bool) -> None:
    """Inside of a thought that nothing has closed a call is held to its schema, and may be the end.

    No key of its arguments comes twice, and its mark stands in no thought.
    """
    chosen, tokenizer = format_named(family), family_tokenizer(family)
    assert chosen.calls is not None
    assert chosen.reasoning is not None
    given = '{"location": "Oslo", "unit": "celsius", "x": 1}'
    call = chosen.calls.write([WrittenCall("functions.get_weather:0", "get_weather", given)])
    opening = "" if starts_inside else chosen.reasoning.open
    compiled = compiler_of(family).compile(spec_of(family, choice, starts_inside))
    for text, is_taken in (
        (call, True),
        (call.replace("celsius", "kelvins"), False),
        (call.replace('"x"', '"unit"'), False),
        (call + chosen.reasoning.close + call, False),
        ("", False),
    ):
        matcher = compiled.matcher()
        ids = tokenizer.encode(f"{opening}so it is{text}", add_special_tokens=False)
        try:
            for token_id in ids:
                mask = matcher.mask()
                assert is_taken <= (int(mask[token_id // 32]) >> token_id % 32 & 1)
                matcher.accept(token_id)
            assert matcher.is_accepting is is_taken
        except GrammarRejected:
            assert not is_taken


def test_bare_strings_are_held_to_their_schema() -> None:
    """Between tags a string has no quotes; pattern, length and choice hold all the same."""
    text = {"type": "string"}
    properties = {
        "code": text | {"pattern": "ab+c"},
        "line": text | {"pattern": "^[^<]x.*$"},
        "size": text | {"minLength": 2, "maxLength": 3},
        "kind": text | {"enum": ["a b", "c"]},
        "flag": {"type": "boolean"},
        "never": False,
    }
    schema = {"type": "object", "properties": properties, "required": [*properties][:4]}
    tokenizer = family_tokenizer("qwen3-coder")
    tokens, chosen = AddedTokens(tokenizer), format_named("qwen3-coder")
    calling = ToolCalling([FunctionTool("f", schema)], chosen, tokens)
    compiled = compiler_of("qwen3-coder").compile(calling.grammar("required"))

    def allows(**values: str) -> bool:
        given = {"code": "xabbcx", "line": "ax<", "size": "üü", "kind": "a b", "flag": "True"}
        told = "".join(
            f"<parameter={name}>\n{value}\n</parameter>\n"
            for name, value in (given | values).items()
        )
        written = f"<tool_call>\n<function=f>\n{told}</function>\n</tool_call>"
        try:
            ids = tokenizer.encode(written, add_special_tokens=False)
            return compiled.matcher(ids).is_accepting
        except GrammarRejected:
            return False

    assert allows()
    assert allows(flag="false")
    for wrong in (
        {"code": "xac"}, {"code": "a</parameter>abc"}, {"line": "x"}, {"size": "a"},
        {"size": "abcd"}, {"kind": "b"}, {"flag": "yes"}, {"never": "1"},
    ):  # fmt: skip
        assert not allows(**wrong)
    impossible = {"type": "object", "properties": {"n": False}, "required": ["n"]}
    with pytest.raises(GrammarRejected, match="nothing can satisfy"):
        ToolCalling([FunctionTool("f", impossible)], chosen, tokens).grammar()


def _in_prompt(written: CallFormat) -> str:
    return written.call_open if written.opens_in_prompt else ""


@pytest.mark.parametrize(
    ("head", "most"),
    [
        ("<|channel|>final <|constrain|>", 16),
        ("<|channel|>commentary<|constrain|>", 120),
        (" to=", 120),
    ],
)
def test_headers_of_channels_end(head: str, most: int) -> None:
    """A model that goes astray between two marks is stopped, with tools and without."""
    family = "gpt-oss"
    tokenizer, chat_format = family_tokenizer(family), format_named(family)
    tokens, rule = AddedTokens(tokenizer), ReasoningRule()
    spec = free_answer(chat_format, tokens, rule)
    if most == 16:
        spec = GrammarSpec(GrammarKind.REGEX, "[0-9]", before_answer(chat_format, tokens, rule))
    compiled = compiler_of(family).compile(spec)
    fits = tokenizer.encode(head + "j" * 9 + "<|message|>", add_special_tokens=False)
    assert compiled.matcher(fits)
    strays = tokenizer.encode(head + "j" * (most + 1), add_special_tokens=False)
    with pytest.raises(GrammarRejected):
        compiled.matcher(strays)


def test_white_space_behind_the_last_call_ends() -> None:
    """One call is over with its mark; where calls are free, a line and its indentation pass."""
    tokenizer = family_tokenizer("hermes")
    calling = calling_of("hermes")
    call = WrittenCall("", "get_time", "{}")
    written = calling.format.write_calls([call])
    for choice, most in (("required", 0), ("get_time", 0), ("auto", 40)):
        compiled = compiler_of("hermes").compile(calling.grammar(choice, parallel=False))
        for size, is_taken in ((most, True), (most + 1, False), (400, False)):
            ids = tokenizer.encode(written + "\n" * size, add_special_tokens=False)
            if is_taken:
                assert compiled.matcher(ids).is_accepting
                continue
            with pytest.raises(GrammarRejected):
                compiled.matcher(ids)
