"""Input items of a response: checked, named, and turned into the messages of a chat.

Messages, calls, their results and reasoning are items of one list. A message of the assistant, its
reasoning and its calls are one message to a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenbus.producer.gateway.wire.api_error import ApiError
from tokenbus.producer.stored.derived_ids import input_item_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ROLES = ("user", "assistant", "system", "developer")
_TYPES = "message, function_call, function_call_output, reasoning or item_reference"
# What each type of item has, and as what.
_ITEM_PARTS: dict[str, dict[str, Any]] = {
    "message": {"role": str, "content": (str, list)},
    "function_call": {"call_id": str, "name": str, "arguments": str},
    "function_call_output": {"call_id": str, "output": (str, list)},
    "reasoning": {"content": (list, type(None)), "summary": (list, type(None))},
}
# Parts of an assistant's message in their order.
_PARTS = ("reasoning_content", "content", "tool_calls")
MAX_ITEMS = 4096


def invalid(param: str, message: str) -> ApiError:
    """Return the error of a field that cannot be meant."""
    return ApiError(400, f"{param}: {message}", code="invalid_request", param=param)


def checked_items(
    given: Any, response_id: str, earlier: Mapping[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the input as items with types and ids. Raises: ApiError 400 with the path.

    `earlier` are the items that may be referred to, by their ids.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list):
        raise invalid("input", "must be text or a list of items")
    if not 1 <= len(given) <= MAX_ITEMS:
        raise invalid("input", f"must hold 1 to {MAX_ITEMS} items")
    items = []
    for index, item in enumerate(given):
        path = f"input.{index}"
        if not isinstance(item, dict):
            raise invalid(path, "must be an item")
        if item.get("type") == "item_reference":
            found = earlier.get(str(item.get("id")))
            if found is None:
                raise invalid(f"{path}.id", "names no item of the earlier responses")
            items.append(found)
        else:
            named = dict(item)
            named["type"] = _type_of(item, path)
            if not isinstance(named.get("id"), str):
                named["id"] = input_item_id(response_id, index)
            if named["type"] == "message" and isinstance(named["content"], str):
                kind = "output_text" if named["role"] == "assistant" else "input_text"
                named["content"] = [{"type": kind, "text": named["content"]}]
            items.append(named)
    return items


def _type_of(item: Mapping[str, Any], path: str) -> str:
    """Return the type of an item whose parts are as its type has them."""
    kind = item.get("type") or ("message" if "role" in item else None)
    parts = _ITEM_PARTS.get(kind) if isinstance(kind, str) else None
    if parts is None:
        raise invalid(f"{path}.type", f"must be {_TYPES}, got {repr(kind)[:80]}")
    for name, types in parts.items():
        if not isinstance(item.get(name), types):
            told = "must be text" if types is str else "must be text or a list of parts"
            raise invalid(f"{path}.{name}", told)
    if kind == "message" and item["role"] not in _ROLES:
        raise invalid(f"{path}.role", f"must be one of {', '.join(_ROLES)}")
    return str(kind)


@dataclass(slots=True)
class InputMessages:
    """Messages of a chat, and for each the path of the item that it came from."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def add_instructions(self, instructions: str | None) -> None:
        """Begin with what the model is told beforehand."""
        if instructions:
            self.messages.append({"role": "system", "content": instructions})
            self.paths.append("instructions")

    def add(self, items: Sequence[Mapping[str, Any]], path: str) -> None:
        """Add the messages of items, whose path is that of their list."""
        for index, item in enumerate(items):
            self._add(item, f"{path}.{index}")

    def _add(self, item: Mapping[str, Any], path: str) -> None:
        match item["type"]:
            case "message" if item["role"] == "assistant":
                self._assistant(path, "content")["content"] = item["content"]
            case "message":
                self._put({"role": item["role"], "content": item["content"]}, path)
            case "function_call":
                function = {"name": item["name"], "arguments": item["arguments"]}
                call = {"id": item["call_id"], "type": "function", "function": function}
                self._assistant(path, "tool_calls").setdefault("tool_calls", []).append(call)
            case "function_call_output":
                told = {"role": "tool", "tool_call_id": item["call_id"]}
                self._put(told | {"content": item["output"]}, path)
            case "reasoning" if text := _reasoning_text(item):
                self._assistant(path, "reasoning_content")["reasoning_content"] = text

    def _assistant(self, path: str, part: str) -> dict[str, Any]:
        """Return the assistant's message that a part belongs to: the last, or a new one.

        In a message reasoning comes first, then content, then calls.
        """
        last = self.messages[-1] if self.messages else {"role": ""}
        later = _PARTS[_PARTS.index(part) + (part == "tool_calls") :]
        if last["role"] != "assistant" or any(last.get(each) is not None for each in later):
            self._put({"role": "assistant", "content": None}, path)
        return self.messages[-1]

    def _put(self, message: dict[str, Any], path: str) -> None:
        self.messages.append(message)
        self.paths.append(path)

    def told(self, field_path: str) -> str:
        """Return the path of a part of the messages as the sender has spelled it."""
        head, _, rest = field_path.partition(".")
        if head != "messages":
            return field_path
        index, _, inner = rest.partition(".")
        if not index.isdecimal() or int(index) >= len(self.paths):
            return "input"
        path = self.paths[int(index)]
        return f"{path}.{inner}" if inner and path != "instructions" else path


def _reasoning_text(item: Mapping[str, Any]) -> str:
    """Return what was thought, or its summary where that alone is told."""
    for name in ("content", "summary"):
        parts = item.get(name) or []
        texts = [part.get("text") for part in parts if isinstance(part, dict)]
        if any(texts):
            return "\n".join(str(text) for text in texts if text)
    return ""
