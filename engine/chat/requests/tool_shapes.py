"""Tools and the choice among them, as clients of other servers write them: brought to one spelling.

A choice is `auto`, `none`, `required` or `{"name": …}`. OpenAI's `allowed_tools` leaves the tools
that are named, and its former `functions` and `function_call` are tools of which one is called at
most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenbus.engine.chat.requests.message_shapes import as_mapping
from tokenbus.engine.chat.requests.shape_error import ShapeInvalid
from tokenbus.engine.chat.requests.value_checks import shown

# What templates of transformers and caches of others add to a function or a tool.
_UNREAD = frozenset({"return", "cache_control"})
# Parameters bind whatever it says; some clients write it beside the function too.
_UNREAD_OF_TOOLS = _UNREAD | {"strict"}
_MODES = {"auto": "auto", "none": "none", "required": "required", "any": "required"}
_CHOICES = 'auto, none, required or {"type": "function", "function": {"name": …}}'


def shaped_tools(tools: Any, path: str = "tools") -> list[dict[str, Any]]:
    """Return tools as `{"type": "function", "function": …}`. Raises: ShapeInvalid."""
    if not isinstance(tools, (list, tuple)):
        raise ShapeInvalid(path, f"must be a list of tools, got {type(tools).__name__}")
    return [_shaped_tool(tool, f"{path}.{idx}") for idx, tool in enumerate(tools)]


def tools_of_functions(functions: Any) -> list[dict[str, Any]]:
    """Return OpenAI's former `functions` as tools. Raises: ShapeInvalid."""
    path = "functions"
    if not isinstance(functions, (list, tuple)):
        raise ShapeInvalid(path, f"must be a list of functions, got {type(functions).__name__}")
    return [
        {"type": "function", "function": _shaped_function(function, f"{path}.{idx}")}
        for idx, function in enumerate(functions)
    ]


def shaped_choice(
    choice: Any, tools: list[dict[str, Any]] | None, path: str = "tool_choice"
) -> tuple[Any, list[dict[str, Any]] | None]:
    """Return a choice in one spelling, and the tools that it leaves. Raises: ShapeInvalid."""
    if isinstance(choice, str):
        if choice not in _MODES:
            raise ShapeInvalid(path, f"must be {_CHOICES}, got {shown(choice)}")
        return _MODES[choice], tools
    fields = as_mapping(choice, path, _CHOICES)
    kind = fields.get("type", "function")
    if kind == "allowed_tools":
        return _allowed(fields, tools, path)
    if kind != "function":
        raise ShapeInvalid(f"{path}.type", f"must be function or allowed_tools, got {shown(kind)}")
    named, where = fields, path
    if fields.get("function") is not None:
        where = f"{path}.function"
        named = as_mapping(fields["function"], where, "the name of a tool")
    name = named.get("name")
    if not isinstance(name, str):
        raise ShapeInvalid(f"{where}.name", f"must be the name of a tool: {_CHOICES}")
    unknown = set(named) - {"name", "type"} | set(fields) - {"name", "type", "function"}
    if unknown:
        raise ShapeInvalid(f"{path}.{min(map(str, unknown))}", "is no field of a choice")
    return {"name": name}, tools


def _allowed(
    fields: Mapping[str, Any], tools: list[dict[str, Any]] | None, path: str
) -> tuple[Any, list[dict[str, Any]] | None]:
    """Return mode and tools of a choice that allows some of them."""
    where = f"{path}.allowed_tools"
    # The client of chat completions nests mode and tools, that of responses does not.
    given = fields.get("allowed_tools")
    allowed = fields if given is None else as_mapping(given, where, "mode and tools")
    mode = allowed.get("mode", "auto")
    if mode not in ("auto", "required"):
        raise ShapeInvalid(f"{where}.mode", f"must be auto or required, got {shown(mode)}")
    listed = allowed.get("tools")
    if not isinstance(listed, (list, tuple)) or not listed:
        raise ShapeInvalid(f"{where}.tools", "must be a list of tools")
    names = []
    for idx, tool in enumerate(listed):
        named = as_mapping(tool, f"{where}.tools.{idx}", "the name of a tool")
        inner = named.get("function")
        names.append((inner if isinstance(inner, Mapping) else named).get("name"))
    known = [tool["function"].get("name") for tool in tools or ()]
    for idx, name in enumerate(names):
        if name not in known:
            raise ShapeInvalid(f"{where}.tools.{idx}", f"{shown(name)} is not among the tools")
    return mode, [tool for tool in tools or () if tool["function"].get("name") in names]


def _shaped_tool(tool: Any, path: str) -> dict[str, Any]:
    fields = as_mapping(tool, path, "a tool")
    kind = fields.get("type")
    if kind not in (None, "function"):
        told = f"must be function, the only kind of tool, got {shown(kind)}"
        raise ShapeInvalid(f"{path}.type", told)
    if fields.get("function") is None:
        if "name" not in fields:
            raise ShapeInvalid(f"{path}.function", "is missing")
        # As the client of responses writes it.
        bare = {name: value for name, value in fields.items() if name not in ("type", "function")}
        return {"type": "function", "function": _shaped_function(bare, path)}
    outer = {
        name: value
        for name, value in fields.items()
        if name not in ("type", "function") and name not in _UNREAD_OF_TOOLS and value is not None
    }
    if outer:
        raise ShapeInvalid(f"{path}.{min(map(str, outer))}", "is no field of a tool")
    function = _shaped_function(fields["function"], f"{path}.function")
    return {"type": "function", "function": function}


def _shaped_function(function: Any, path: str) -> dict[str, Any]:
    fields = as_mapping(function, path, "a function")
    return {
        name: value for name, value in fields.items() if value is not None and name not in _UNREAD
    }
