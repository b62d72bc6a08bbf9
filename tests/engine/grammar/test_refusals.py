"""What a constraint may not ask for is refused by name, never ignored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from models.constraints import accepts, schema_spec

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.grammar.grammar import GrammarCompiler

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
