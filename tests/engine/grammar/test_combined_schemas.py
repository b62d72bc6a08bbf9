"""Schemas that the library cannot combine by itself are enforced exactly, or refused."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from models.constraints import accepts, schema_spec
from models.drawn_schemas import drawn_schema, drawn_value
from models.schema_suite import is_accepted

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.json_schema import enforceable_schema
from tokenbus.engine.grammar.schema import judge, writer
from tokenbus.engine.grammar.schema.case import identity
from tokenbus.engine.grammar.schema.expansion import Expansion
from tokenbus.engine.grammar.schema.refusal import CALL_STEPS, StepBudget
from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.grammar.grammar import GrammarCompiler

DECIMAL = r"^(?!^[-+.]*$)[+-]?0*(?:\d{0,3}|(?=[\d.]{1,6}0*$)\d{0,3}\.\d{0,2}0*$)$"
ANY_NUMBER = {"type": ["integer", "null"]}


def _tagged(number: int) -> dict[str, Any]:
    """Return an alternative as Pydantic writes one of a discriminated union."""
    properties = {"kind": {"const": f"k{number}", "type": "string"}, "size": {"type": "integer"}}
    return {"type": "object", "properties": properties, "required": ["kind"]}


# A schema, values that satisfy it, and values that do not.
EXAMPLES: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "not-enum": ({"type": "string", "not": {"enum": ["a", "ab"]}}, ["", "b", "aba"], ["a", "ab"]),
    "not-number": ({**ANY_NUMBER, "not": {"const": 3}}, [2, 4, None], [3]),
    "not-required": ({"not": {"required": ["a"]}, "type": "object"}, [{"b": 1}], [{"a": 1}]),
    "tag": ({"oneOf": [_tagged(1), _tagged(2)]}, [{"kind": "k2", "size": 3}], [{"size": 3}]),
    "tag-twice": (
        {"oneOf": [_tagged(1), {**_tagged(1), "required": ["kind", "size"]}]},
        [{"kind": "k1"}],
        [{"kind": "k1", "size": 3}],
    ),
    "tag-missing": (
        {"oneOf": [{**_tagged(number), "required": []} for number in (1, 2)]},
        [{"kind": "k1"}, {"kind": "k2", "size": 3}],
        [{"size": 3}],
    ),
    "one-of": (
        {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": 1, "c": 2}],
        [{}, {"a": 1, "b": 2}],
    ),
    "one-of-values": (
        {"oneOf": [{"const": 1}, {"enum": [1.0, 2, "a"]}, {"type": "string", "enum": ["b", 3]}]},
        [2, "a", "b"],
        [1, 3, "c"],
    ),
    "any-of-values": (
        {"anyOf": [{"const": 1}, {"enum": [1.0, 2]}, {"type": "string", "const": 3}]},
        [1, 2],
        [3],
    ),
    "values-twice-told": (
        {"enum": [1, 2, 3], "anyOf": [{"const": 2}, {"const": 3}], "oneOf": [{"const": 3}]},
        [3],
        [1, 2],
    ),
    "if": (
        {
            "type": "object",
            "properties": {"kind": {"enum": ["a", "b"]}, "n": {"type": "integer"}},
            "required": ["kind"],
            "if": {"properties": {"kind": {"const": "a"}}},
            "then": {"required": ["n"]},
            "else": {"properties": {"n": False}},
        },
        [{"kind": "a", "n": 1}, {"kind": "b"}],
        [{"kind": "a"}, {"kind": "b", "n": 1}],
    ),
    "names": (
        {"type": "object", "propertyNames": {"pattern": "^x"}, "patternProperties": {"y$": False}},
        [{"x": 1}, {"xa": {}}],
        [{"xy": 1}, {"a": 1}],
    ),
    "literal-names": (
        {"type": "object", "propertyNames": {"enum": ["b", "a"]}, "additionalProperties": True},
        [{}, {"b": 1, "a": 2}],
        [{"c": 1}, {"a": 1, "a ": 1}],
    ),
    "dependencies": (
        {"type": "object", "dependencies": {"a": ["b"], "c": {"properties": {"b": {"const": 1}}}}},
        [{"a": 1, "b": 2}, {"b": 2}, {"b": 1, "c": 0}],
        [{"a": 1}, {"b": 2, "c": 0}],
    ),
    "unique": (
        {"type": "array", "items": {"enum": ["x", "y"]}, "uniqueItems": True},
        [[], ["x"], ["y", "x"]],
        [["x", "x"], ["z"]],
    ),
    "required-over-most": (
        {
            "type": ["object", "null"],
            "properties": {"a": True, "b": True},
            "required": ["a", "b"],
            "additionalProperties": False,
            "maxProperties": 1,
        },
        [None],
        [{}, {"a": 1}, {"a": 1, "b": 2}],
    ),
    "contains-none": (
        {
            "type": ["array", "null"],
            "contains": {"type": "string"},
            "maxContains": 0,
            "maxItems": 1,
        },
        [None],
        [[], [1], ["a"]],
    ),
    "contains": (
        {"type": "array", "contains": {"const": 1}, "maxItems": 3},
        [[1], [0, 1], [2, 2, 1]],
        [[], [0, 0, 0]],
    ),
    "unevaluated": (
        {
            "type": "object",
            "anyOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": True}}],
            "unevaluatedProperties": False,
        },
        [{"a": 1}, {"b": 2}, {"a": 1, "b": 2}],
        [{"a": 2}, {"c": 1}],
    ),
    "look-ahead": (
        {"type": "string", "pattern": DECIMAL},
        ["1", "-12.5", "123.45", "0.10"],
        ["", ".", "+", "1234", "1.234"],
    ),
    "draft-4": (
        {
            "$schema": "http://json-schema.org/draft-04/schema#",
            "id": "urn:x",
            "definitions": {"n": {"minimum": 1, "exclusiveMinimum": True, "type": "integer"}},
            "items": [{"$ref": "#/definitions/n"}],
            "additionalItems": False,
            "type": "array",
        },
        [[], [2]],
        [[1], [2, 3]],
    ),
    "anchors": (
        {"$id": "http://x/y", "$defs": {"s": {"$anchor": "z", "type": "null"}}, "$ref": "#z"},
        [None],
        [1],
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_combination_allows_what_it_says(
    name: str, compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Every value that satisfies the schema is accepted, and no other."""
    schema, good, bad = EXAMPLES[name]
    grammar = compiler.compile(schema_spec(schema))
    assert [value for value in good if not is_accepted(grammar, tokenizer, value)] == []
    assert [value for value in bad if is_accepted(grammar, tokenizer, value)] == []


def test_values_of_a_long_list_are_compared_by_looking_them_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of thousands none is held against all others."""
    calls = Counter[str]()

    def counted(value: Any) -> Any:
        calls["identity"] += 1
        return identity(value)

    monkeypatch.setattr(judge, "identity", counted)
    monkeypatch.setattr(writer, "identity", counted)
    labels = [f"SKU-{idx:05d}" for idx in range(2000)]
    schema = {"properties": {"sku": {"enum": [*labels, labels[0]]}}, "required": ["sku"]}
    written = enforceable_schema(schema)
    assert labels == written["properties"]["sku"]["enum"]
    assert calls["identity"] <= 4 * len(labels)


@pytest.mark.parametrize("word", ["anyOf", "oneOf"])
def test_alternatives_that_only_list_values_are_one_list(word: str) -> None:
    """A union of thousands of constants costs what an enum of them does."""
    labels = [f"SKU-{idx:05d}" for idx in range(3000)]
    options = [{"type": "string", "const": label, "title": label.lower()} for label in labels]
    assert enforceable_schema({word: options}) == {"enum": labels}


def test_alternatives_held_against_each_other_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so many that not all pairs can be looked at, the search ends long before it has."""
    looked_at = Counter[str]()
    is_pair_empty = Expansion._is_pair_empty

    def counted(self: Expansion, *pair: Any) -> bool:
        looked_at["pairs"] += 1
        return is_pair_empty(self, *pair)

    monkeypatch.setattr(Expansion, "_is_pair_empty", counted)
    options = [{"type": "string", "minLength": idx, "maxLength": idx} for idx in range(60)]
    with pytest.raises(GrammarRejected, match="takes too many steps"):
        enforceable_schema({"oneOf": options}, budget=StepBudget(3000))
    assert 0 < looked_at["pairs"] <= 3000 / 40


def test_alternatives_with_a_tag_are_told_apart_without_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A union of hundreds of objects, each with a value of one key, needs no look at pairs."""
    monkeypatch.setattr(Expansion, "_is_pair_empty", lambda *_: pytest.fail("looked at a pair"))
    names = {f"M{number}": _tagged(number) for number in range(300)}
    union = {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in names]}
    schema = {"$defs": names, "type": "object", "properties": {"one": union}}
    written = enforceable_schema(schema, budget=StepBudget(CALL_STEPS))
    found = [option["properties"]["kind"] for option in written["properties"]["one"]["anyOf"]]
    assert found == [{"const": f"k{number}"} for number in range(300)]


def test_patterns_that_are_combined_count() -> None:
    """Hundreds of patterns held against each other end long before all of them are combined."""
    options = [{"type": "string", "pattern": f"^a{number}[a-z]*$"} for number in range(300)]
    budget = StepBudget(CALL_STEPS)
    with pytest.raises(GrammarRejected, match="takes too many steps"):
        enforceable_schema({"oneOf": options}, budget=budget)


@pytest.mark.parametrize(
    "seeds", [range(60), pytest.param(range(60, 3000), marks=pytest.mark.slow)]
)
def test_drawn_schemas_say_what_a_validator_says(
    seeds: range, compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """What compiles accepts exactly the values that jsonschema finds valid."""
    num_compiled = num_unplaced = num_wrong = 0
    for seed in seeds:
        draw = random.Random(seed)
        schema = drawn_schema(draw)
        validator = jsonschema.Draft202012Validator(schema)
        values = [drawn_value(draw) for _ in range(16)]
        try:
            grammar = compiler.compile(schema_spec(schema))
        except GrammarRejected as error:
            reason = str(error)
            is_found_empty = "nothing can satisfy" in reason
            num_unplaced += "at #" not in reason
            num_wrong += is_found_empty and any(map(validator.is_valid, values))
            continue
        num_compiled += 1
        for value in values:
            expected = validator.is_valid(value)
            assert is_accepted(grammar, tokenizer, value) is expected, (seed, schema, value)
    assert (num_unplaced, num_wrong) == (0, 0)
    assert num_compiled >= 0.5 * len(seeds)


@pytest.mark.parametrize(
    "annotation",
    [
        {"id": "x", "$schema": "http://json-schema.org/draft-04/schema#"},
        {"readonly": True, "links": [], "media": {}, "strict": True, "x-of-ours": 1},
        {"contentMediaType": "text/html", "contentEncoding": "base64", "contentSchema": {"not": 1}},
        {"uniqueItems": False, "nullable": False, "markdownDescription": "d", "name": "n"},
        {"format": "html-selector"},
        {"_format": "x", "self": {"vendor": "v"}, "propertyOrdering": ["a"], "enumNames": []},
    ],
    ids=lambda value: next(iter(value)),
)
def test_words_that_say_nothing_about_values_pass(
    annotation: dict[str, Any], compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """They change nothing."""
    spec = schema_spec({"type": "string", "maxLength": 2, **annotation})
    assert accepts(compiler, tokenizer, spec, '"ab"')
    assert not accepts(compiler, tokenizer, spec, '"abc"')


@pytest.mark.parametrize("num", [3000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_choice_of_many_labels_compiles(
    num: int, compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A hundred thousand labels of thirty characters and more are one grammar."""
    labels = [f"a label that is one of many, {index}" for index in range(num)]
    spec = GrammarSpec(GrammarKind.CHOICE, json.dumps(labels))
    assert accepts(compiler, tokenizer, spec, labels[num // 2])
    assert not accepts(compiler, tokenizer, spec, labels[0][:-1])
