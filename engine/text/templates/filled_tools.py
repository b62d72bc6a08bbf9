"""Fields of tools and turns that templates take for granted and clients leave out, filled in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_KINDS = frozenset({"type", "anyOf", "oneOf", "allOf", "enum", "const", "$ref"})


def filled_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Return a turn without null."""
    return {key: "" if value is None else value for key, value in turn.items()}


def filled_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool with a description, and parameters that have types and descriptions."""
    function = dict(tool.get("function", tool))
    function["description"] = function.get("description") or ""
    parameters = {"type": "object", "properties": {}, **(function.get("parameters") or {})}
    parameters["properties"] = {
        name: _described(schema) if isinstance(schema, dict) else schema
        for name, schema in parameters["properties"].items()
    }
    return {"type": "function", "function": {**function, "parameters": parameters}}


def _described(schema: dict[str, Any]) -> dict[str, Any]:
    kind = {} if _KINDS & schema.keys() else {"type": "string"}
    return {**kind, "description": "", **_opened(schema)}


def _opened(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose objects say of what kind their further values are: of any."""
    opened = dict(schema)
    if opened.get("type") == "object":
        opened.setdefault("additionalProperties", {"type": None})
    for key in ("additionalProperties", "items"):
        if isinstance(opened.get(key), dict):
            opened[key] = _opened(opened[key])
    return opened
