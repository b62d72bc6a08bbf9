"""The chat of a job: how its answers are written, as its worker tells it to every reader."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

# What of a schema says nothing of the type of a value is left out: it can be long.
_SILENT_KEYS = frozenset(
    {
        *("title", "description", "examples", "default", "$comment", "$schema", "$id"),
        *("pattern", "format", "minLength", "maxLength", "minimum", "maximum", "multipleOf"),
        *("exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems", "uniqueItems"),
        *("minProperties", "maxProperties", "deprecated", "readOnly", "writeOnly"),
    }
)
# Of these the keys are names; of those the values are schemas, or lists of them. What else there
# is stays as it is: a reference may lead there.
_NAMED = frozenset({"properties", "$defs", "definitions"})
_SCHEMAS = frozenset({"items", "additionalProperties", "anyOf", "oneOf", "allOf", "prefixItems"})


@dataclass(frozen=True, slots=True)
class JobChat:
    """How the answers of a job are read as messages.

    format: name of the chat format (`tokenbus.engine.chat`).
    tools: names of the tools that may be called, each with what of its arguments' JSON schema tells
        types, where the format writes values without quotes (`typing_part`); else empty objects.
    starts_in_reasoning: the prompt has opened the reasoning block of the answer.
    """

    format: str
    tools: dict[str, dict[str, Any]] = field(default_factory=dict)
    starts_in_reasoning: bool = False

    def dump(self) -> str:
        """Return the JSON object that stands in logs and results."""
        return _encode(self).decode()

    @classmethod
    def parse(cls, text: bytes | str) -> JobChat | None:
        """Read what `dump` wrote; None for what is no chat."""
        try:
            return _decode(text)
        except msgspec.MsgspecError:
            return None

    @classmethod
    def of_wire(cls, wire: object) -> JobChat | None:
        """Read the same where it was decoded already."""
        try:
            return msgspec.convert(wire, JobChat)
        except msgspec.ValidationError:
            return None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(JobChat).decode


def typing_part(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a JSON schema tells the types of values."""
    return {
        key: _typing_value(key, value) for key, value in schema.items() if key not in _SILENT_KEYS
    }


def _typing_value(key: str, value: Any) -> Any:
    if key in _NAMED and isinstance(value, dict):
        return {name: _typing_schema(each) for name, each in value.items()}
    if key in _SCHEMAS:
        if isinstance(value, list):
            return [_typing_schema(each) for each in value]
        return _typing_schema(value)
    return value


def _typing_schema(schema: Any) -> Any:
    return typing_part(schema) if isinstance(schema, dict) else schema
