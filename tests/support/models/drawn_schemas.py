"""Schemas and values drawn from a seed, small enough that a validator often says yes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

_NAMES = ["a", "b", "ab"]
_SCALARS = [None, True, False, 0, 1, 2, 3, -1, 1.5, 2.5, "", "a", "b", "ab", "aab", "ba", 10]
_TYPES = ["null", "boolean", "integer", "number", "string", "array", "object"]
_LEAVES: list[Any] = [True, {"type": "string"}, {"const": 1}, {"minimum": 1}, {"required": ["a"]}]
_SUB = ("items", "contains", "additionalProperties", "not", "propertyNames")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MOST_DEPTH = 2


def drawn_value(draw: random.Random, depth: int = 0) -> Any:
    """Draw a value."""
    kind = draw.random()
    if kind < 0.5 or depth > 2:
        return draw.choice(_SCALARS)
    if kind < 0.75:
        return [drawn_value(draw, depth + 1) for _ in range(draw.randint(0, 2))]
    names = draw.sample(_NAMES, draw.randint(0, 3 if depth == 0 else 1))
    return {name: drawn_value(draw, depth + 1) for name in names}


def drawn_schema(draw: random.Random, depth: int = 0) -> Any:
    """Draw a schema of one to three keywords and what these need."""
    if depth > _MOST_DEPTH:
        return draw.choice(_LEAVES)
    if draw.random() < 0.06:
        return draw.random() < 0.6
    schema: dict[str, Any] = {}
    for word in draw.sample([*_PLAIN, *_DEEP], draw.choice([1, 1, 2, 2, 3])):
        if word in _PLAIN:
            schema[word] = _PLAIN[word](draw)
        else:
            schema |= _deep(draw, word, depth)
    return schema


def _deep(draw: random.Random, word: str, depth: int) -> dict[str, Any]:
    if word in _LISTS:
        return {word: [drawn_schema(draw, depth + 1) for _ in range(draw.randint(1, 3))]}
    if word in _SUB or word.startswith("unevaluated"):
        return {word: drawn_schema(draw, depth + 1)}
    if word == "if":
        return {key: drawn_schema(draw, depth + 1) for key in ("if", "then", "else")}
    if word == "patternProperties":
        keys = draw.sample(["^a", "b$", "^a$"], draw.randint(1, 2))
    else:
        keys = draw.sample(_NAMES, draw.randint(1, 2))
    return {word: {key: drawn_schema(draw, depth + 1) for key in keys}}


_PLAIN: dict[str, Callable[[random.Random], Any]] = {
    "type": lambda draw: draw.choice([*_TYPES, ["string", "object"], ["array", "integer"]]),
    "enum": lambda draw: [drawn_value(draw, 1) for _ in range(draw.randint(1, 4))],
    "const": lambda draw: drawn_value(draw, 1),
    "minimum": lambda draw: draw.choice([0, 1, 1.5, -1]),
    "exclusiveMinimum": lambda draw: draw.choice([0, 1, 1.5]),
    "maximum": lambda draw: draw.choice([1, 2, 2.5]),
    "multipleOf": lambda draw: draw.choice([1, 2, 0.5]),
    "minLength": lambda draw: draw.randint(0, 2),
    "maxLength": lambda draw: draw.randint(0, 3),
    "pattern": lambda draw: draw.choice(["^a", "b$", "^a+b?$", "a", "^(?!a)", "^.{1,2}$"]),
    "minItems": lambda draw: draw.randint(0, 2),
    "maxItems": lambda draw: draw.randint(0, 3),
    "uniqueItems": lambda draw: draw.random() < 0.7,
    "minProperties": lambda draw: draw.randint(0, 2),
    "maxProperties": lambda draw: draw.randint(0, 3),
    "required": lambda draw: draw.sample(_NAMES, draw.randint(1, 2)),
    "dependentRequired": lambda draw: {draw.choice(_NAMES): draw.sample(_NAMES, 1)},
}
_DEEP = (
    *_SUB, *_LISTS, "properties", "patternProperties", "dependentSchemas", "if",
    "unevaluatedProperties", "unevaluatedItems",
)  # fmt: skip
