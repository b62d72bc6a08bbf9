"""Reasoning effort as clients of other servers write it: brought to arguments of a template.

DeepSeek, GLM and LiteLLM say it with `thinking`, OpenRouter with `reasoning`. Templates read
`enable_thinking`, `thinking` or `reasoning_effort`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.requests.message_shapes import as_mapping
from tokenbus.engine.chat.requests.shape_error import ShapeInvalid
from tokenbus.engine.chat.requests.value_checks import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

REASONING_FIELDS = ("thinking", "reasoning")
_PLAIN_FIELDS = ("reasoning_effort", "enable_thinking")
TEMPLATE_FIELDS = (*_PLAIN_FIELDS, *REASONING_FIELDS)
_BUDGET = "max_reasoning_tokens"
# How templates call the switch.
_SWITCHES = ("enable_thinking", "thinking")
_KINDS: dict[str, bool | None] = {
    "enabled": True,
    "disabled": False,
    "adaptive": None,
    "auto": None,
}
_KNOWN = {
    "thinking": frozenset({"type", "budget_tokens"}),
    "reasoning": frozenset({"enabled", "effort", "max_tokens", "exclude"}),
}


def template_arguments(
    fields: Mapping[str, Any], own: dict[str, Any], names: dict[str, str]
) -> dict[str, Any]:
    """Return what the fields of a request say to the template beside `chat_template_kwargs`.

    A bound on reasoning goes to `own`, and the path it came by to `names`.
    Raises: ShapeInvalid.
    """
    arguments = {name: fields[name] for name in _PLAIN_FIELDS if name in fields}
    switches: dict[str, bool] = {}
    for name in REASONING_FIELDS:
        if name not in fields:
            continue
        given = _fields_of(name, fields[name])
        path, is_on = _switch(name, given)
        if is_on is not None:
            switches[path] = is_on
        budget = "budget_tokens" if name == "thinking" else "max_tokens"
        if budget in given:
            _add(own, _BUDGET, given[budget], f"{name}.{budget}")
            names.setdefault(_BUDGET, f"{name}.{budget}")
        if "effort" in given:
            if not isinstance(given["effort"], str):
                raise ShapeInvalid(f"{name}.effort", f"must be text, got {shown(given['effort'])}")
            _add(arguments, "reasoning_effort", given["effort"], f"{name}.effort")
    for path, is_on in switches.items():
        _add(arguments, "enable_thinking", is_on, path)
        arguments["thinking"] = is_on
    return arguments


def _fields_of(name: str, given: Any) -> Mapping[str, Any]:
    if name == "thinking" and isinstance(given, bool):
        return {"type": "enabled" if given else "disabled"}
    found = as_mapping(given, name, "an object")
    fields = {key: value for key, value in found.items() if value is not None}
    unknown = fields.keys() - _KNOWN[name]
    if unknown:
        raise ShapeInvalid(f"{name}.{min(map(str, unknown))}", "is not known here")
    return fields


def _switch(name: str, given: Mapping[str, Any]) -> tuple[str, bool | None]:
    """Return where thinking is turned on or off, and which; None where that is left open."""
    if name == "reasoning":
        is_on = given.get("enabled")
        if is_on is not None and not isinstance(is_on, bool):
            raise ShapeInvalid("reasoning.enabled", f"must be true or false, got {shown(is_on)}")
        return "reasoning.enabled", is_on
    kind = given.get("type")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ShapeInvalid("thinking.type", f"must be enabled or disabled, got {shown(kind)}")
    return "thinking.type", _KINDS[kind]


def _add(fields: dict[str, Any], name: str, value: Any, path: str) -> None:
    """Add a value, unless it is there. Raises: ShapeInvalid if another one is."""
    if fields.get(name) is not None and fields[name] != value:
        raise ShapeInvalid(path, f"{shown(value)} differs from {name} {shown(fields[name])}")
    fields[name] = value
