"""The form of answers: how those to one prompt are read as messages, in plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokenbus.engine.chat.chat_format import ChatFormat

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
class AnswerForm:
    """How answers are read as messages.

    format: name of the chat format (`format_named`).
    tools: names of the tools that may be called, each with what of its arguments' JSON schema tells
        types, where the format writes values without quotes (`typing_part`); else empty objects.
    starts_in_reasoning: the prompt has opened the reasoning block of the answer.
    """

    format: str
    tools: dict[str, dict[str, Any]] = field(default_factory=dict)
    starts_in_reasoning: bool = False

    @classmethod
    def of(
        cls,
        chat_format: ChatFormat,
        tools: Iterable[Mapping[str, Any]],
        *,
        starts_in_reasoning: bool = False,
    ) -> Self | None:
        """Return how the answers to a conversation are read; None if they are content alone.

        Args:
            tools: those that may be called, as chat APIs spell them.
        """
        functions = [tool["function"] for tool in tools]
        if not functions and chat_format.reasoning is None:
            return None
        needs_types = _needs_types(chat_format)
        schemas = {
            function["name"]: typing_part(function["parameters"]) if needs_types else {}
            for function in functions
        }
        return cls(chat_format.name, schemas, starts_in_reasoning)


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


def _needs_types(chat_format: ChatFormat) -> bool:
    """Tell whether the format writes values without quotes, so that schemas say what they are."""
    calls = chat_format.calls
    return calls is not None and any(
        each.parameters is not None for each in (calls, *calls.also_read)
    )
