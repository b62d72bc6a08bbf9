"""Schemas of arguments as tools have them, drawn from a seed: small, so that calls end soon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random

# Names of arguments, some of which are keys of calls.
_NAMES = ["a", "b", "name", "arguments", "c-d"]
_TEXTS = ["a", "b c", "d\ne", "</x>", "é", "1", "true"]
_MIXED = ["a", 1, 2.5, None, True, "null"]
_PATTERNS = ["^[a-c]{1,3}$", "^x", "y$", "^(ab|cd)+$", "^a|b$"]
_PLAIN = ("whole", "number", "truth", "text", "label", "mixed", "date", "pattern", "short")
_DEEP = ("list", "set", "object", "either", "optional", "map")
_MOST_DEPTH = 2


def drawn_arguments(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    """Draw the schema of an object; at the top it may be more than its properties."""
    names = draw.sample(_NAMES, draw.randint(0, 3))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _drawn_value(draw, depth) for name in names},
        "required": draw.sample(names, draw.randint(0, len(names))),
    }
    if draw.random() < 0.7:
        schema["additionalProperties"] = False
    if depth or not names:
        return schema
    if len(names) > 1 and draw.random() < 0.4:
        schema["dependentRequired"] = {names[0]: [names[1]]}
    if draw.random() < 0.2:
        schema["minProperties"] = 1
    if draw.random() < 0.2:
        other = {"type": "object", "properties": {"z": {"const": 1}}, "required": ["z"]}
        schema = {"type": "object", "anyOf": [schema, {**other, "additionalProperties": False}]}
    return schema


def _drawn_value(draw: random.Random, depth: int) -> Any:
    kind = draw.choice(_PLAIN if depth >= _MOST_DEPTH else (*_PLAIN, *_DEEP))
    if kind in _DEEP:
        return _deep(draw, kind, depth + 1)
    plain: dict[str, Any] = {
        "whole": {
            "type": "integer",
            "minimum": draw.randint(-3, 3),
            "maximum": draw.randint(4, 12),
        },
        "number": {"type": "number", "minimum": 0, "exclusiveMaximum": 10},
        "truth": {"type": draw.choice(["boolean", "null"])},
        "text": {"type": "string", "maxLength": 6},
        "label": {"enum": draw.sample(_TEXTS, 3)},
        "mixed": {"enum": draw.sample(_MIXED, 3)},
        "date": {"type": "string", "format": "date"},
        "pattern": {"type": "string", "pattern": draw.choice(_PATTERNS), "maxLength": 5},
        "short": {"type": "string", "minLength": 1, "maxLength": 3},
    }
    return plain[kind]


def _deep(draw: random.Random, kind: str, depth: int) -> Any:
    match kind:
        case "list":
            return {"type": "array", "items": _drawn_value(draw, depth), "maxItems": 3}
        case "set":
            few: list[Any] = [
                {"type": "integer", "minimum": 0, "maximum": 4},
                {"enum": ["p", "q", "r"]},
                {"type": "string", "maxLength": 2},
            ]
            return {"type": "array", "items": draw.choice(few), "uniqueItems": True, "maxItems": 3}
        case "object":
            return drawn_arguments(draw, depth)
        case "either":
            return {"anyOf": [_drawn_value(draw, depth), _drawn_value(draw, depth)]}
        case "optional":
            return {"anyOf": [_drawn_value(draw, depth), {"type": "null"}]}
    value = _drawn_value(draw, depth)
    return {"type": "object", "additionalProperties": value, "maxProperties": 2}
