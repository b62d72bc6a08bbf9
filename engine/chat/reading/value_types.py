"""Types of arguments: what a tool's schema says, for values that are written without quotes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.reading.python_literal import is_json, python_as_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

STRING = frozenset({"string"})
_ANY: frozenset[str] = frozenset()
# References are followed so often; one may lead back to itself.
_MAX_STEPS = 16


def argument_types(schema: Mapping[str, Any], name: str) -> frozenset[str]:
    """Return the JSON types that an argument may have; empty if the schema does not say.

    Integers are numbers here.
    """
    node = _resolved(schema, schema)
    properties = node.get("properties")
    if isinstance(properties, dict) and name in properties:
        return _types(properties[name], schema, _MAX_STEPS)
    return _types(node.get("additionalProperties"), schema, _MAX_STEPS)


def _types(node: Any, root: Mapping[str, Any], steps: int) -> frozenset[str]:
    if not isinstance(node, dict) or not steps:
        return _ANY
    node = _resolved(node, root)
    said = node.get("type")
    if isinstance(said, str | list):
        names = [said] if isinstance(said, str) else said
        null = ["null"] if node.get("nullable") is True else []
        return frozenset("number" if each == "integer" else str(each) for each in [*names, *null])
    if isinstance(values := node.get("enum"), list):
        return frozenset(_type_of(value) for value in values)
    if "const" in node:
        return frozenset({_type_of(node["const"])})
    for key in ("anyOf", "oneOf"):
        if isinstance(ways := node.get(key), list):
            found = [_types(way, root, steps - 1) for way in ways]
            return _ANY if _ANY in found else _union(found)
    for part in node.get("allOf") or ():
        if found_in_part := _types(part, root, steps - 1):
            return found_in_part
    return _ANY


def _union(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset(name for each in sets for name in each)


def _resolved(node: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow the references of a node within its schema; empty if one leads nowhere."""
    for _ in range(_MAX_STEPS):
        reference = node.get("$ref")
        if not isinstance(reference, str):
            return node
        place: Any = root
        for part in reference.removeprefix("#").strip("/").split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            place = place.get(key) if isinstance(place, dict) and key else place
        if not isinstance(place, dict):
            break
        node = place
    return {}


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def value_as_json(text: str, types: frozenset[str]) -> str:
    """Return the JSON of a value that was written without quotes: a string, or JSON as it is.

    What is of none of its types is a string, which the tool can refuse.
    """
    if types != STRING:
        word = text.strip()
        written = word if is_json(word) else python_as_json(word)
        if written is not None and (not types or _type_of(json.loads(written)) in types):
            return written
    return json.dumps(text, ensure_ascii=False)
