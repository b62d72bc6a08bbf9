"""What a constraint may not ask for is refused by name, never ignored."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from models.constraints import accepts, schema_spec

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.grammar.grammar import GrammarCompiler

KEYWORDS: dict[str, Any] = {
    "not": {"not": {"type": "array", "uniqueItems": True}, "type": "array"},
    "contains": {"type": "array", "contains": {"const": 1}},
    "uniqueItems": {
        "anyOf": [
            {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
            {"type": "array", "items": {"type": "string"}},
        ]
    },
    "unevaluatedItems": {
        "type": "array",
        "maxItems": 2,
        "contains": {"const": 1},
        "unevaluatedItems": False,
    },
    "patternProperties": {"not": {"patternProperties": {"^a": {"const": 1}}}},
    "nullable": {"type": "string", "nullable": True},
    "divisibleBy": {"type": "integer", "divisibleBy": 2},
    "disallow": {"disallow": "string"},
    "extends": {"extends": {"type": "string"}},
    "formatMinimum": {"type": "string", "format": "date", "formatMinimum": "2020-01-01"},
    "$recursiveRef": {"$recursiveRef": "http://elsewhere/schema"},
    "$dynamicRef": {"$dynamicRef": "#a"},
    "x-guidance": {"type": "string", "x-guidance": {"lenient": True}},
    "minimun": {"type": "integer", "minimun": 3},
    "maxLenght": {"type": "string", "maxLenght": 3},
    "Pattern": {"type": "string", "Pattern": "^a"},
    "format": {"type": "string", "format": "hostname"},
    "type": {"type": "number", "not": {"type": "integer"}},
    "multipleOf": {"type": "integer", "not": {"multipleOf": 3}},
    "minimum": {"type": "number", "minimum": 10**40},
    "minProperties": {
        "type": "object",
        "additionalProperties": {"type": "integer"},
        "minProperties": 2,
    },
    "$ref": {"$ref": "http://elsewhere/schema"},
}


# What is named where another keyword asks for it.
NAMED = {"not": "uniqueItems"}


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
    with pytest.raises(
        GrammarRejected, match=rf"keyword '{re.escape(NAMED.get(keyword, keyword))}' at #"
    ) as refused:
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
            "default": {"minimun": 1},
        }
    )
    assert accepts(compiler, tokenizer, spec, '{"not": {"if": 1}, "nullable": "not"}')


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (GrammarSpec(GrammarKind.JSON_SCHEMA, "{"), "not JSON"),
        (GrammarSpec(GrammarKind.JSON_SCHEMA, '"string"'), "object or a boolean"),
        (GrammarSpec(GrammarKind.JSON_SCHEMA, "[" * 100_000), "not JSON"),
        (schema_spec(False), "at #: nothing can satisfy"),
        (schema_spec({"type": "strnig"}), "strnig"),
        (schema_spec({"type": "string", "format": "date_time"}), "did you mean 'date-time'"),
        (schema_spec({"type": "integer", "minimum": 5, "maximum": 3}), "nothing can satisfy"),
        (schema_spec({"type": "string", "pattern": "(?<=a$)b"}), "look-around inside"),
        (schema_spec({"$ref": "#"}), "without end"),
        (schema_spec({"anyOf": [{"$ref": "#"}, {"const": 1}]}), "without end"),
        (schema_spec({"properties": {"a": {"$ref": "#/properties/a"}}}), "without end"),
        (schema_spec({"$ref": "#/$defs/missing"}), "missing is not a schema"),
        (schema_spec({"default": {"type": "string"}, "$ref": "#/default"}), "not a schema"),
        (schema_spec({"properties": ["a"]}), "object of schemas"),
        (schema_spec({"anyOf": {"type": "string"}}), "list of schemas"),
        (schema_spec({"oneOf": [{"type": "number"}, {"type": "integer"}]}), "whole"),
        (GrammarSpec(GrammarKind.REGEX, "(a"), "regex"),
        (GrammarSpec(GrammarKind.LARK, "start: missing"), "missing"),
        (GrammarSpec(GrammarKind.CHOICE, "[]"), "list of one or more strings"),
        (GrammarSpec(GrammarKind.CHOICE, '["a", 1]'), "list of one or more strings"),
        (GrammarSpec(GrammarKind.REGEX, "a" * (2 << 20)), "the limit is"),
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


_WORDS = [f"w{index}" for index in range(40)]
EXPLOSIONS: dict[str, Any] = {
    "choices": {
        "allOf": [{"anyOf": [{"minimum": n}, {"required": [n_]}]} for n, n_ in enumerate(_WORDS)]
    },
    "patterns": {"allOf": [{"pattern": f"^(?!.*a.{{{n}}}b)"} for n in range(8, 30)]},
    "names": {"patternProperties": {f"a.{{{n}}}b": {"minimum": n} for n in range(3, 15)}},
    "arrays": {
        "maxItems": 5,
        "allOf": [{"contains": {"const": n}, "minContains": 2} for n in range(9)],
    },
    "unevaluated": {
        "anyOf": [{"anyOf": [{"properties": {a: True}} for a in _WORDS[:6]]} for _ in range(6)],
        "unevaluatedProperties": False,
    },
}


@pytest.mark.parametrize("name", EXPLOSIONS)
def test_schema_that_explodes_is_refused_in_time(compiler: GrammarCompiler, name: str) -> None:
    """Steps, alternatives and states are bounded, and the refusal says where."""
    with pytest.raises(GrammarRejected, match="at #"):
        compiler.compile(schema_spec(EXPLOSIONS[name]))
