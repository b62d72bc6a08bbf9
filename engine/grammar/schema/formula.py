"""Formulas: what a keyword means, and how it fails, as changes of a case, claims and choices.

A part changes a case, claims something further, or is a choice between lists of parts.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from tokenbus.engine.grammar.schema.case import (
    NUMBER,
    Contained,
    Fields,
    Items,
    SchemaCase,
    Text,
    kinds_of_type,
)
from tokenbus.engine.grammar.schema.node import Claim, Node
from tokenbus.engine.grammar.schema.refusal import refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tokenbus.engine.errors import GrammarRejected

    Change = Callable[[SchemaCase], SchemaCase]
    Choice = list[list["Part"]]
    Part = Change | Claim | Choice

# Counts by what their keyword ends in: the kind of value, and the count of a case.
_COUNTS = {
    "Length": ("string", "length"),
    "Items": ("array", "num_items"),
    "Properties": ("object", "num_keys"),
}
_EVERYTHING = Claim(Node(0, (), verdict=True))


def positive(node: Node, word: str) -> Iterable[Part]:
    """Return what a keyword asserts, all of which holds together.

    `oneOf`, references and what depends on other keywords are not among these.
    """
    if word[3:] in _COUNTS:
        return [_count(word[3:], int(node.words[word]), is_least=word.startswith("min"))]
    return _POSITIVE[word](node, node.words[word]) if word in _POSITIVE else ()


def negative(node: Node, word: str) -> Iterable[list[Part]]:
    """Return the ways in which a keyword does not hold."""
    if word[3:] in _COUNTS:
        return _negative_count(word, int(node.words[word]))
    return _NEGATIVE[word](node, node.words[word]) if word in _NEGATIVE else ()


def structure(node: Node) -> Iterator[Part]:
    """Yield what a schema says of values inside of objects and lists."""
    words = node.words
    if {"properties", "patternProperties", "additionalProperties"} & set(words):
        rest = words.get("additionalProperties")
        yield with_fields(
            Fields(
                {key: Claim(inner) for key, inner in words.get("properties", {}).items()},
                {key: Claim(inner) for key, inner in words.get("patternProperties", {}).items()},
                None if rest is None else Claim(rest),
                node.path,
            )
        )
    if {"prefixItems", "items"} & set(words):
        rest = words.get("items")
        prefix = [Claim(inner) for inner in words.get("prefixItems", ())]
        yield with_items(Items(prefix, None if rest is None else Claim(rest)))


def with_fields(fields: Fields) -> Change:
    """Add what is said of the values of keys."""
    return lambda case: case.with_(fields=(*case.fields, fields))


def with_items(items: Items) -> Change:
    """Add what is said of the items of a list."""
    return lambda case: case.with_(items=(*case.items, items))


def object_with(*keys: str) -> list[Part]:
    """Return that a value is an object with these keys."""
    return [lambda case: case.of_kinds({"object"}).requires(list(keys))]


def lacks(key: str) -> Change:
    """Return that an object does not have a key."""
    return lambda case: case.lacks(key)


def _exact(number: Any) -> Fraction:
    """Return a number of JSON as it is written."""
    return Fraction(repr(number))


def _kinds(*kinds: str) -> Change:
    return lambda case: case.of_kinds(set(kinds))


def _least(bound: Any, *, is_open: bool) -> Change:
    return lambda case: case.at_least(_exact(bound), is_open=is_open)


def _most(bound: Any, *, is_open: bool) -> Change:
    return lambda case: case.at_most(_exact(bound), is_open=is_open)


def _count(what: str, bound: int, *, is_least: bool) -> Change:
    kind, name = _COUNTS[what]
    if is_least:
        return lambda case: case.counted(name, kind, least=bound)
    return lambda case: case.counted(name, kind, most=bound)


def _text(word: str, node: Node, *, holds: bool) -> Change:
    text = Text(word, node.words[word], holds, node.path, "pattern" not in node.words)
    return lambda case: case.with_(texts=(*case.texts, text))


def _contains(claim: Claim, least: int, most: int | None, begin: int, node: Node) -> Change:
    contained = Contained(claim, least, most, begin, node.path)
    return lambda case: case.with_(contained=(*case.contained, contained))


def _blocked(kind: str, word: str, node: Node) -> list[Part]:
    """Return that a value is of a kind for which a keyword cannot be denied."""
    why: GrammarRejected = refusal(word, node.path, "cannot be enforced where it must not hold")
    return [lambda case: case.of_kinds({kind}).block(kind, why)]


def _of_values(_: Node, values: list[Any]) -> list[Part]:
    return [lambda case: case.with_(values=values if case.values is None else case.values)]


def _if(node: Node, value: Node) -> list[Part]:
    condition, words = Claim(value), node.words
    return [
        [
            [condition, *([Claim(words["then"])] if "then" in words else [])],
            [condition.opposite, *([Claim(words["else"])] if "else" in words else [])],
        ]
    ]


def _step(_: Node, value: Any) -> list[Part]:
    return [lambda case: case.with_(multiples=(*case.multiples, _exact(value)))]


def _how_many(node: Node, value: Node) -> list[Part]:
    words = node.words
    least, most = words.get("minContains", 1), words.get("maxContains")
    return [_contains(Claim(value), int(least), None if most is None else int(most), 0, node)]


_POSITIVE: dict[str, Callable[[Node, Any], Iterable[Part]]] = {
    "type": lambda _, value: [lambda case: case.of_kinds(kinds_of_type(value))],
    "enum": _of_values,
    "const": _of_values,
    "minimum": lambda _, value: [_least(value, is_open=False)],
    "exclusiveMinimum": lambda _, value: [_least(value, is_open=True)],
    "maximum": lambda _, value: [_most(value, is_open=False)],
    "exclusiveMaximum": lambda _, value: [_most(value, is_open=True)],
    "multipleOf": _step,
    "pattern": lambda node, _: [_text("pattern", node, holds=True)],
    "format": lambda node, _: [_text("format", node, holds=True)],
    "required": lambda _, value: [lambda case: case.requires(value)],
    "uniqueItems": lambda node, _: [lambda case: case.with_(unique=node.path)],
    "propertyNames": lambda _, value: [lambda case: case.with_(names=(*case.names, Claim(value)))],
    "allOf": lambda _, value: map(Claim, value),
    "anyOf": lambda _, value: [[[Claim(inner)] for inner in value]],
    "not": lambda _, value: [Claim(value, False)],
    "if": _if,
    "dependentRequired": lambda _, value: [
        [[lacks(key)], object_with(key, *keys)] for key, keys in value.items()
    ],
    "dependentSchemas": lambda _, value: [
        [[lacks(key)], [*object_with(key), Claim(inner)]] for key, inner in value.items()
    ],
    "contains": _how_many,
}


def _negative_count(word: str, value: int) -> list[list[Part]]:
    is_least, kind = word.startswith("min"), _COUNTS[word[3:]][0]
    if value == 0 and is_least:
        return []
    bound = value - 1 if is_least else value + 1
    return [[_kinds(kind), _count(word[3:], bound, is_least=not is_least)]]


def _not_multiple(node: Node, value: Any) -> list[list[Part]]:
    if value == 1:
        return [[_kinds("fraction")]]
    return [_blocked(kind, "multipleOf", node) for kind in sorted(NUMBER)]


def _not_if(node: Node, value: Node) -> Iterator[list[Part]]:
    for branch, holds in (("then", True), ("else", False)):
        if branch in node.words:
            yield [Claim(value, holds), Claim(node.words[branch], False)]


def _not_contains(node: Node, value: Node) -> Iterator[list[Part]]:
    least, most = node.words.get("minContains", 1), node.words.get("maxContains")
    if least:
        yield [_kinds("array"), _contains(Claim(value), 0, int(least) - 1, 0, node)]
    if most is not None:
        yield [_kinds("array"), _contains(Claim(value), int(most) + 1, None, 0, node)]


def _not_properties(node: Node, value: dict[str, Node]) -> Iterator[list[Part]]:
    for key, inner in value.items():
        fields = Fields({key: Claim(inner, False)}, {}, None, node.path)
        yield [*object_with(key), with_fields(fields)]


def _not_patterns(node: Node, value: dict[str, Node]) -> list[list[Part]]:
    is_free = all(inner.verdict is True for inner in value.values())
    return [] if is_free else [_blocked("object", "patternProperties", node)]


def _not_others(node: Node, value: Node) -> list[list[Part]]:
    if value.verdict is True:
        return []
    if value.verdict is False and not {"properties", "patternProperties"} & set(node.words):
        return [[_kinds("object"), _count("Properties", 1, is_least=True)]]
    return [_blocked("object", "additionalProperties", node)]


def _not_first(_: Node, value: list[Node]) -> Iterator[list[Part]]:
    for index, inner in enumerate(value):
        items = Items([*[_EVERYTHING] * index, Claim(inner, False)], None)
        yield [_kinds("array"), _count("Items", index + 1, is_least=True), with_items(items)]


def _not_items(node: Node, value: Node) -> list[list[Part]]:
    begin = len(node.words.get("prefixItems", ()))
    if value.verdict is False:
        return [[_kinds("array"), _count("Items", begin + 1, is_least=True)]]
    if value.verdict is True:
        return []
    return [[_kinds("array"), _contains(Claim(value, False), 1, None, begin, node)]]


def _excluded(_: Node, values: list[Any]) -> list[list[Part]]:
    return [[lambda case: case.with_(excluded=[*case.excluded, *values])]]


def _not_names(node: Node, value: Node) -> list[list[Part]]:
    return [] if value.verdict is True else [_blocked("object", "propertyNames", node)]


_NEGATIVE: dict[str, Callable[[Node, Any], Iterable[list[Part]]]] = {
    "type": lambda _, value: [[lambda case: case.without(kinds_of_type(value))]],
    "enum": _excluded,
    "const": _excluded,
    "minimum": lambda _, value: [[_kinds(*NUMBER), _most(value, is_open=True)]],
    "exclusiveMinimum": lambda _, value: [[_kinds(*NUMBER), _most(value, is_open=False)]],
    "maximum": lambda _, value: [[_kinds(*NUMBER), _least(value, is_open=True)]],
    "exclusiveMaximum": lambda _, value: [[_kinds(*NUMBER), _least(value, is_open=False)]],
    "multipleOf": _not_multiple,
    "pattern": lambda node, _: [[_kinds("string"), _text("pattern", node, holds=False)]],
    "format": lambda node, _: [[_kinds("string"), _text("format", node, holds=False)]],
    "required": lambda _, value: [[_kinds("object"), lacks(key)] for key in value],
    "dependentRequired": lambda _, value: [
        [*object_with(key), lacks(other)] for key, keys in value.items() for other in keys
    ],
    "dependentSchemas": lambda _, value: [
        [*object_with(key), Claim(inner, False)] for key, inner in value.items()
    ],
    "propertyNames": _not_names,
    "uniqueItems": lambda node, _: [_blocked("array", "uniqueItems", node)],
    "unevaluatedItems": lambda node, _: [_blocked("array", "unevaluatedItems", node)],
    "unevaluatedProperties": lambda node, _: [_blocked("object", "unevaluatedProperties", node)],
    "allOf": lambda _, value: [[Claim(inner, False)] for inner in value],
    "anyOf": lambda _, value: [[Claim(inner, False) for inner in value]],
    "not": lambda _, value: [[Claim(value)]],
    "if": _not_if,
    "contains": _not_contains,
    "properties": _not_properties,
    "patternProperties": _not_patterns,
    "additionalProperties": _not_others,
    "prefixItems": _not_first,
    "items": _not_items,
}
