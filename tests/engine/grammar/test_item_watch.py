"""Items of lists with `uniqueItems`: none comes twice, and no output is led to a dead end."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from drawn_outputs import drawn_output
from models.constraints import accepts, encode, schema_spec

from tokenbus.engine.errors import GrammarRejected

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.grammar.grammar import GrammarCompiler

DIGIT = {"type": "integer", "minimum": 0, "maximum": 3}


def _unique(items: Any, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "uniqueItems": True, **more}


# Lists in which a random output likes to repeat an item, or to begin one that is there already.
SCHEMAS: dict[str, Any] = {
    "one-that-begins-another": _unique({"type": "string", "pattern": "^(a|bc*)$"}),
    "literals": _unique({"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "^z+$"}]}),
    "all-numbers-there-are": _unique({**DIGIT, "maximum": 9}, minItems=9),
    "labels": _unique({"enum": [f"v{index}" for index in range(24)]}, minItems=23),
    "objects": _unique(
        {
            "type": "object",
            "properties": {"k": {"enum": ["a", "b"]}, "on": {"type": "boolean"}, "n": DIGIT},
            "required": ["k"],
            "additionalProperties": False,
        }
    ),
    "objects-in-any-order": _unique(
        {
            "type": "object",
            "additionalProperties": DIGIT,
            "propertyNames": {"pattern": "^[ab]{1,9}$"},
        }
    ),
    "lists-in-lists": {
        "type": "object",
        "properties": {
            "t": _unique(_unique({**DIGIT, "maximum": 30}, maxItems=3), maxItems=4),
            "u": {"type": "array", "items": DIGIT, "minItems": 6, "maxItems": 6},
        },
        "required": ["t", "u"],
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_no_item_comes_twice(
    name: str, compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """What is written is valid, and nothing is begun that could only be an item of before."""
    grammar = compiler.compile(schema_spec(SCHEMAS[name]))
    validator = jsonschema.Draft202012Validator(SCHEMAS[name])
    num_whole = 0
    for seed in range(6):
        matcher = grammar.matcher()
        text = drawn_output(matcher, tokenizer, seed, 200)
        if matcher.is_accepting:
            num_whole += 1
            validator.validate(json.loads(text))
    assert num_whole >= 4


@pytest.mark.parametrize(
    ("items", "text", "may_pass"),
    [
        (True, '[1, true, "1", null, [1], {"a": 1}, [[1]]]', True),
        (True, "[1, 1.0]", False),
        (True, "[100, 1e2]", False),
        (True, '[{"a": 1, "b": 2}, {"b": 2, "a": 1}]', False),
        (True, '[{"a": [1, 1]}, {"a": [1, 1, 1]}]', True),
        ({"type": "string"}, '["a, b", "a", "a\\", \\"a"]', True),
        ({"type": "string"}, '["a", "b", "a"]', False),
        ({"type": "object", "properties": {"n": {"type": "string"}}}, '[{"n": "a"}, {}]', True),
        ({"type": "object", "properties": {"n": {"type": "string"}}}, "[{}, {}]", False),
    ],
)
def test_equal_items_are_told_from_alike_ones(
    items: Any,
    text: str,
    may_pass: bool,
    compiler: GrammarCompiler,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """By their values: order of keys and spelling of numbers aside."""
    grammar = compiler.compile(schema_spec(_unique(items)))
    if may_pass:
        assert grammar.matcher(encode(tokenizer, text)).is_accepting
    else:
        with pytest.raises(GrammarRejected, match="comes twice"):
            grammar.matcher(encode(tokenizer, text))


def test_lists_beside_may_repeat(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Only lists of the schema that asks for it have each item once, by whatever way they come."""
    tags = {"anyOf": [{"type": "string"}, _unique({"type": "string"})]}
    spec = schema_spec(
        {
            "type": "object",
            "properties": {"tags": {"$ref": "#/$defs/tags"}, "words": {"items": tags}, "all": {}},
            "patternProperties": {"^x": {"$ref": "#/$defs/tags"}},
            "$defs": {"tags": tags},
        }
    )
    for text, may_pass in (
        ('{"tags": ["a", "b"], "all": ["a", "a"]}', True),
        ('{"tags": ["a", "a"]}', False),
        ('{"words": ["a", "a", ["a"], ["a"]]}', True),
        ('{"words": [["a", "a"]]}', False),
        ('{"x": ["a", "a"]}', False),
        ('{"all": [["a", "a"]], "y": ["a", "a"]}', True),
    ):
        assert accepts(compiler, tokenizer, spec, text) is may_pass, text


def test_list_that_may_be_another_one_is_refused(compiler: GrammarCompiler) -> None:
    """Where a value may belong to a schema without the keyword, nobody can tell."""
    schema = {"properties": {"p": {"anyOf": [_unique({"type": "string"}), {"type": "array"}]}}}
    with pytest.raises(GrammarRejected, match=r"'uniqueItems' at #/properties/p/anyOf/0: beside"):
        compiler.compile(schema_spec(schema))


def test_answer_behind_reasoning_is_refused(compiler: GrammarCompiler) -> None:
    """It is not followed there; few lists are written out all the same."""
    spec = replace(schema_spec(_unique({"type": "string"})), before='before: "a"')
    with pytest.raises(GrammarRejected, match=r"'uniqueItems' at #: only where"):
        compiler.compile(spec)
    few = replace(schema_spec(_unique({"enum": ["a", "b"]})), before='before: "a"')
    compiler.compile(few)


def test_more_items_than_there_are_values_are_refused(compiler: GrammarCompiler) -> None:
    """No list could ever be ended."""
    with pytest.raises(GrammarRejected, match="nothing can satisfy it"):
        compiler.compile(schema_spec(_unique({**DIGIT, "maximum": 40}, minItems=42)))


def test_fork_has_items_of_its_own(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """What one row writes after the fork is no item of the other's."""
    matcher = compiler.compile(schema_spec(_unique({"type": "string"}))).matcher(
        encode(tokenizer, '["a", "')
    )
    twin = matcher.fork()
    for row, text in ((matcher, 'b", "c"]'), (twin, 'b", "d"]')):
        for token_id in encode(tokenizer, text):
            row.accept(token_id)
        assert row.is_accepting
