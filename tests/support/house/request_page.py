"""The fields of a job in `docs/requests.md`: their defaults and values as the schema has them."""

from __future__ import annotations

from typing import Any

from tokenbus.producer.contract.schema import JobRequest


def columns() -> dict[str, tuple[str, str]]:
    """Return default and values of every field, as the page shows them."""
    fields: dict[str, dict[str, Any]] = JobRequest.model_json_schema()["properties"]
    return {name: (_default(told), _values(told)) for name, told in fields.items()}


def _default(told: dict[str, Any]) -> str:
    default = told.get("default")
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return "none" if default is None else f"`{default}`"


def _values(told: dict[str, Any]) -> str:
    """Return kind and bounds of a value."""
    choices = [each for each in told.get("anyOf", [told]) if each.get("type") != "null"]
    return " or ".join(map(_value, choices))


def _value(told: dict[str, Any]) -> str:
    kind = told.get("type", "object")
    if "enum" in told:
        return ", ".join(f"`{each}`" for each in told["enum"])
    if kind in ("integer", "number"):
        over = "over " if "exclusiveMinimum" in told else ""
        low, high = told["exclusiveMinimum" if over else "minimum"], told["maximum"]
        return (
            f"{'whole ' if kind == 'integer' else ''}number, {over}{_shown(low)} to {_shown(high)}"
        )
    if kind == "array":
        return f"list{_at_most(told, 'maxItems')}"
    if kind == "object":
        return f"object{_at_most(told, 'maxProperties')}"
    if kind == "string":
        return f"text{_at_most(told, 'maxLength', ' characters')}"
    return "`true` or `false`"


def _at_most(told: dict[str, Any], name: str, unit: str = "") -> str:
    return f", {_shown(told[name])}{unit} at most" if name in told else ""


def _shown(value: float) -> str:
    """Return a number; those of 31 bits and more as a power."""
    if value <= -(2**31):
        return f"-2^{int(-value).bit_length() - 1}"
    if value >= 2**31 - 1:
        return f"2^{int(value + 1).bit_length() - 1} - 1"
    return f"{int(value):,}" if value == int(value) else f"{value:g}"
