"""Types of arguments: what a tool's schema says, for values that are written without quotes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.reading.python_literal import as_json, is_json, python_as_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

STRING = frozenset({"string"})
_ANY: frozenset[str] = frozenset()
# References are followed so often; one may lead back to itself.
_MAX_STEPS = 16
# Parts of a schema that are looked at for one type; they may stand in each other.
_MAX_NODES = 200


def argument_types(schema: Mapping[str, Any], name: str) -> frozenset[str]:
    """Return the JSON types that an argument may have; empty if the schema does not say.

    Integers are numbers here.
    """
    node = _resolved(schema, schema)
    properties = node.get("properties")
    if isinstance(properties, dict) and name in properties:
        return _types(properties[name], schema, {})
    return _types(node.get("additionalProperties"), schema, {})


def _types(
    node: Any, root: Mapping[str, Any], known: dict[int, frozenset[str] | None]
) -> frozenset[str]:
    """Return the types of a node; `known` has those of nodes that were seen, each looked at once.

    Of a node that is being looked at it has None: one that leads back to itself says nothing.
    """
    if not isinstance(node, dict):
        return _ANY
    node = _resolved(node, root)
    if id(node) not in known:
        known[id(node)] = None
        # So deep a schema says nothing.
        known[id(node)] = _types_said(node, root, known) if len(known) < _MAX_NODES else _ANY
    return known[id(node)] or _ANY


def _types_said(
    node: Mapping[str, Any], root: Mapping[str, Any], known: dict[int, frozenset[str] | None]
) -> frozenset[str]:
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
            found = [_types(way, root, known) for way in ways]
            return _ANY if _ANY in found else _union(found)
    parts = node.get("allOf")
    for part in parts if isinstance(parts, list) else ():
        if found_in_part := _types(part, root, known):
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
    word = text.strip()
    written = word if is_json(word) else python_as_json(word)
    if written is not None and (not types or _type_of(json.loads(written)) in types):
        return written
    return as_json(text)
