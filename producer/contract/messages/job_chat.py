"""The chat of a job: how its answers are written, as its worker tells it to every reader."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

# What of a schema says nothing of the type of a value is left out: it can be long.
_TYPING_KEYS = frozenset(
    {
        *("type", "enum", "const", "properties", "patternProperties", "additionalProperties"),
        *("items", "prefixItems", "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions"),
        *("required", "nullable"),
    }
)
# Of these the keys are names.
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})


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
    return {key: _typing_value(key, value) for key, value in schema.items() if key in _TYPING_KEYS}


def _typing_value(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        if key in _NAMED:
            return {name: _typing_value("", each) for name, each in value.items()}
        return typing_part(value)
    if isinstance(value, list) and key not in ("enum", "type", "required"):
        return [typing_part(each) if isinstance(each, dict) else each for each in value]
    return value
