"""Matchers, compilation, and what is refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar import GrammarCompiler, compile_grammar
from tokenbus.engine.sampling.bitmask import bitmask_width, unpack, unpack_table
from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.grammar import CompiledGrammar, GrammarMatcher

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "open": {"type": "boolean"}},
    "required": ["name", "open"],
    "additionalProperties": False,
}


def schema_spec(schema: Any) -> GrammarSpec:
    """Spell a JSON schema as a constraint."""
    return GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(schema))


def allowed(matcher: GrammarMatcher, vocab_size: int) -> set[int]:
    """Return the tokens a matcher allows next."""
    bits = unpack(matcher.mask().unsqueeze(0), vocab_size, unpack_table(torch.device("cpu")))
    return set(bits[0].nonzero().flatten().tolist())


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Encode without special tokens."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def accepts(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast, spec: GrammarSpec, text: str
) -> bool:
    """Return True if the constraint allows exactly this text."""
    try:
        return compiler.compile(spec).matcher(encode(tokenizer, text)).is_accepting
    except GrammarRejected:
        return False


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        (GrammarSpec(GrammarKind.REGEX, "[a-c]{2}[0-9]+"), ["ab1", "cc42"], ["a1", "ab", "abx"]),
        (
            GrammarSpec(GrammarKind.CHOICE, json.dumps(["yes", "no", 'a "b"\n\\', "é🚌", "ye"])),
            ["yes", "no", 'a "b"\n\\', "é🚌", "ye"],
            ["y", "yes ", "maybe", ""],
        ),
        (
            GrammarSpec(GrammarKind.LARK, 'start: "(" item* ")"\nitem: /[0-9]/ | start'),
            ["()", "(1(2)3)"],
            ["(", "(a)", "())"],
        ),
        (
            schema_spec(PERSON),
            ['{"name": "Bo", "open": true}'],
            ['{"name": "Bo"}', '{"open": true, "name": "Bo"}', '{"name":"Bo","open":true}'],
        ),
    ],
    ids=["regex", "choice", "lark", "json-schema"],
)
def test_every_kind_allows_its_language_and_nothing_else(
    compiler: GrammarCompiler,
    tokenizer: PreTrainedTokenizerFast,
    spec: GrammarSpec,
    good: list[str],
    bad: list[str],
) -> None:
    """A constraint covers the whole output: no prefix, no suffix, no other spelling."""
    assert all(accepts(compiler, tokenizer, spec, text) for text in good)
    assert not any(accepts(compiler, tokenizer, spec, text) for text in bad)


def test_mask_is_what_accept_allows(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A bit is set if and only if the token can be accepted, at every place of an output.

    Where the text is forced the mask has the one token that spells it as the tokenizer would.
    """
    vocab_size = len(tokenizer) + 13
    matcher = compiler.compile(schema_spec(PERSON)).matcher()
    assert matcher.mask().shape == (bitmask_width(vocab_size),)
    for token_id in encode(tokenizer, '{"name": "é\\n", "open": true}'):
        acceptable = set()
        for candidate in range(vocab_size):
            fork = matcher.fork()
            with suppress(GrammarRejected):
                fork.accept(candidate)
                acceptable.add(candidate)
        bits = allowed(matcher, vocab_size)
        assert bits == acceptable or (len(bits) == 1 and bits < acceptable)
        matcher.accept(token_id)
    assert matcher.is_finished
    assert allowed(matcher, vocab_size) == {0}


def test_end_is_allowed_where_the_grammar_may_end_and_only_there(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The end of the sequence is in the mask exactly at accepting places."""
    matcher = compiler.compile(GrammarSpec(GrammarKind.REGEX, "ab*")).matcher()
    assert 0 not in allowed(matcher, len(tokenizer))
    for _ in range(2):
        matcher.accept(encode(tokenizer, "a" if not matcher.is_accepting else "b")[0])
        assert matcher.is_accepting
        assert not matcher.is_finished
        assert 0 in allowed(matcher, len(tokenizer))


def test_forced_tokens_have_no_alternative(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Forced tokens can all be accepted, and spell what every output has to contain."""
    compiled = compiler.compile(schema_spec(PERSON))
    matcher = compiled.matcher(encode(tokenizer, '{"name": "Bo"'))
    forced = matcher.forced_tokens()
    assert forced
    assert ', "open": '.startswith(str(tokenizer.decode(forced)))
    for token_id in forced:
        assert token_id in allowed(matcher, len(tokenizer))
        matcher.accept(token_id)
    free = compiled.matcher(encode(tokenizer, '{"name": "B'))
    assert free.forced_tokens() == []


def test_fork_and_rebuild_stand_where_the_original_stands(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Forks go separate ways; a matcher fed with logged ids has the mask of the unbroken one."""
    compiled = compiler.compile(schema_spec(PERSON))
    ids = encode(tokenizer, '{"name": "Bo", "open": false}')
    matcher = compiled.matcher()
    for count, token_id in enumerate(ids):
        assert torch.equal(compiled.matcher(ids[:count]).mask(), matcher.mask())
        fork = matcher.fork()
        matcher.accept(token_id)
        assert torch.equal(fork.mask(), compiled.matcher(ids[:count]).mask())


def test_refused_token_is_an_error_of_this_matcher_alone(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A token outside the mask raises, again and again; other matchers go on."""
    compiled = compiler.compile(schema_spec(PERSON))
    broken, healthy = compiled.matcher(), compiled.matcher()
    for _ in range(2):
        with pytest.raises(GrammarRejected):
            broken.accept(encode(tokenizer, "x")[0])
    with pytest.raises(GrammarRejected):
        broken.mask()
    healthy.accept(encode(tokenizer, "{")[0])


def test_grammar_is_compiled_once_whoever_asks(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that ask for the same constraint at once share one compilation."""
    spec = schema_spec({"const": "compiled once"})
    calls: list[GrammarSpec] = []
    compile_one = compiler._compile

    def counted(spec: GrammarSpec) -> CompiledGrammar:
        calls.append(spec)
        return compile_one(spec)

    monkeypatch.setattr(compiler, "_compile", counted)
    with ThreadPoolExecutor(4) as threads:
        compiled = list(threads.map(compiler.compile, [spec] * 16))
    assert len(calls) == 1
    assert all(grammar is compiled[0] for grammar in compiled)


def test_free_function_keeps_one_compiler_per_tokenizer(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """The same tokenizer and constraint give the same compiled grammar."""
    spec = schema_spec(PERSON)
    first = compile_grammar(spec, tokenizer, len(tokenizer), (0,))
    assert compile_grammar(spec, tokenizer, len(tokenizer), (0,)) is first


def test_listed_key_cannot_be_spelled_as_an_unlisted_one(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """An escape does not smuggle a listed key past its own schema."""
    spec = schema_spec(
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "/": {"type": "integer"}},
            "additionalProperties": {"type": "boolean"},
        }
    )
    assert accepts(compiler, tokenizer, spec, '{"b": true}')
    for text in ('{"a": true}', '{"\\u0061": true}', '{"\\/": true}', '{"a": 1, "a": true}'):
        assert not accepts(compiler, tokenizer, spec, text)


KEYWORDS: dict[str, Any] = {
    "not": {"not": {"type": "string"}},
    "if": {"if": {"const": 1}, "then": {"const": 1}},
    "contains": {"type": "array", "contains": {"const": 1}},
    "minContains": {"type": "array", "minContains": 1},
    "uniqueItems": {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True},
    "propertyNames": {"type": "object", "propertyNames": {"pattern": "^a"}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "dependentSchemas": {"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}},
    "dependencies": {"type": "object", "dependencies": {"a": ["b"]}},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "unevaluatedItems": {"type": "array", "unevaluatedItems": False},
    "contentEncoding": {"type": "string", "contentEncoding": "base64"},
    "contentMediaType": {"type": "string", "contentMediaType": "text/html"},
    "nullable": {"type": "string", "nullable": True},
    "divisibleBy": {"type": "integer", "divisibleBy": 2},
    "disallow": {"disallow": "string"},
    "extends": {"extends": {"type": "string"}},
    "$dynamicRef": {"$dynamicRef": "#a"},
    "$recursiveRef": {"$recursiveRef": "#"},
    "x-guidance": {"type": "string", "x-guidance": {"lenient": True}},
    "minimun": {"type": "integer", "minimun": 3},
    "exclusiveMinimum": {"type": "integer", "minimum": 1, "exclusiveMinimum": True},
    "additionalItems": {"type": "array", "items": {"const": 1}, "additionalItems": False},
    "minProperties": {
        "type": "object",
        "additionalProperties": {"type": "integer"},
        "minProperties": 2,
    },
    "$id": {"properties": {"a": {"$id": "http://other", "type": "string"}}},
    "$ref": {"$ref": "http://elsewhere/schema"},
}


@pytest.mark.parametrize("nesting", ["root", "property", "definition", "any-of", "items"])
@pytest.mark.parametrize("keyword", KEYWORDS)
def test_keyword_that_is_not_enforced_is_refused_by_name(
    compiler: GrammarCompiler, keyword: str, nesting: str
) -> None:
    """However deep it lies, an unsupported keyword is named, never ignored."""
    inner = KEYWORDS[keyword]
    schema = {
        "root": inner,
        "property": {"type": "object", "properties": {"p": inner}},
        "definition": {"$defs": {"d": inner}, "anyOf": [{"$ref": "#/$defs/d"}, {"const": 1}]},
        "any-of": {"anyOf": [{"const": 1}, inner]},
        "items": {"type": "array", "items": inner, "maxItems": 2},
    }[nesting]
    with pytest.raises(GrammarRejected, match="keyword '" + keyword.replace("$", r"\$")) as refused:
        compiler.compile(schema_spec(schema))
    assert refused.value.field == "grammar"


def test_keyword_as_a_name_or_a_value_is_not_refused(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Property names and enumerated values are not keywords."""
    spec = schema_spec(
        {
            "type": "object",
            "properties": {"not": {"const": {"if": 1}}, "nullable": {"enum": ["not"]}},
            "required": ["not", "nullable"],
            "additionalProperties": False,
            "default": {"contains": 1},
        }
    )
    assert accepts(compiler, tokenizer, spec, '{"not": {"if": 1}, "nullable": "not"}')


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (GrammarSpec(GrammarKind.JSON_SCHEMA, "{"), "not JSON"),
        (GrammarSpec(GrammarKind.JSON_SCHEMA, '"string"'), "object or a boolean"),
        (GrammarSpec(GrammarKind.JSON_SCHEMA, "[" * 100_000), "not JSON"),
        (schema_spec({"type": "strnig"}), "strnig"),
        (schema_spec({"type": "string", "format": "zip-code"}), "zip-code"),
        (schema_spec({"type": "integer", "minimum": 5, "maximum": 3}), "Unsatisfiable"),
        (schema_spec({"type": "string", "pattern": "(?=a)b"}), "look-around"),
        (schema_spec({"$ref": "#"}), "without end"),
        (schema_spec({"anyOf": [{"$ref": "#"}, {"const": 1}]}), "without end"),
        (schema_spec({"properties": {"a": {"$ref": "#/properties/a"}}}), "without end"),
        (schema_spec({"$ref": "#/$defs/missing"}), "missing is not a schema"),
        (schema_spec({"default": {"type": "string"}, "$ref": "#/default"}), "not a schema"),
        (schema_spec({"properties": ["a"]}), "object of schemas"),
        (schema_spec({"anyOf": {"type": "string"}}), "list of schemas"),
        (schema_spec({"oneOf": [{"type": "number"}, {"type": "integer"}]}), "oneOf"),
        (GrammarSpec(GrammarKind.REGEX, "(a"), "regex"),
        (GrammarSpec(GrammarKind.LARK, "start: missing"), "missing"),
        (GrammarSpec(GrammarKind.CHOICE, "[]"), "list of one or more strings"),
        (GrammarSpec(GrammarKind.CHOICE, '["a", 1]'), "list of one or more strings"),
        (GrammarSpec(GrammarKind.REGEX, "a" * (2 << 20)), "longer than"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_constraint_that_cannot_be_met_is_refused_with_the_reason(
    compiler: GrammarCompiler, spec: GrammarSpec, reason: str
) -> None:
    """A source that does not compile says why, again when asked again."""
    for _ in range(2):
        with pytest.raises(GrammarRejected, match=reason):
            compiler.compile(spec)


def test_deep_schema_is_refused_before_it_harms(compiler: GrammarCompiler) -> None:
    """Nesting is bounded."""
    schema: dict[str, Any] = {"const": 1}
    for _ in range(200):
        schema = {"type": "array", "items": schema, "maxItems": 1}
    with pytest.raises(GrammarRejected, match="nested deeper"):
        compiler.compile(schema_spec(schema))
