"""Input items of a response: checked, named, and turned into the messages of a chat.

Messages, calls, their results and reasoning are items of one list. A message of the assistant, its
reasoning and its calls are one message to a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
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
_NO_PLACES: Mapping[str, str] = MappingProxyType({})


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
        referred = referred_id(item)
        if referred is not None:
            if referred not in earlier:
                raise invalid(f"{path}.id", "names no item of a response that is kept")
            items.append(earlier[referred])
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


def referred_id(item: Mapping[str, Any]) -> str | None:
    """Return the id of the earlier item that one stands for; None of one that is told itself."""
    # OpenAI's own client may leave its type out.
    is_bare = item.get("type") is None and item.keys() <= {"type", "id"}
    is_reference = item.get("type") == "item_reference" or (is_bare and "id" in item)
    return str(item.get("id")) if is_reference else None


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
    """Messages of a chat, and for each where it and its parts stand in the input."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    places: list[dict[str, str]] = field(default_factory=list)

    def add_instructions(self, instructions: str | None) -> None:
        """Begin with what the model is told beforehand."""
        if instructions:
            message = {"role": "system", "content": instructions}
            self._put(message, "instructions", {"content": "instructions"})

    def add(self, items: Sequence[Mapping[str, Any]], path: str) -> None:
        """Add the messages of items, whose path is that of their list."""
        for index, item in enumerate(items):
            self._add(item, f"{path}.{index}")

    def _add(self, item: Mapping[str, Any], path: str) -> None:
        match item["type"]:
            case "message" if item["role"] == "assistant":
                self._assistant("content", path)["content"] = item["content"]
                self.places[-1]["content"] = f"{path}.content"
            case "message":
                self._put({"role": item["role"], "content": item["content"]}, path)
            case "function_call":
                self._call(item, path)
            case "function_call_output":
                told = {"role": "tool", "tool_call_id": item["call_id"]}
                places = {"content": f"{path}.output", "tool_call_id": f"{path}.call_id"}
                self._put(told | {"content": item["output"]}, path, places)
            case "reasoning" if text := _reasoning_text(item):
                self._assistant("reasoning_content", path)["reasoning_content"] = text
                self.places[-1]["reasoning_content"] = path

    def _call(self, item: Mapping[str, Any], path: str) -> None:
        function = {"name": item["name"], "arguments": item["arguments"]}
        call = {"id": item["call_id"], "type": "function", "function": function}
        calls = self._assistant("tool_calls", path).setdefault("tool_calls", [])
        place = f"tool_calls.{len(calls)}"
        calls.append(call)
        self.places[-1] |= {place: path, f"{place}.id": f"{path}.call_id"}
        self.places[-1][f"{place}.function"] = path

    def _assistant(self, part: str, path: str) -> dict[str, Any]:
        """Return the assistant's message that a part belongs to: the last, or a new one.

        In a message reasoning comes first, then content, then calls.
        """
        last = self.messages[-1] if self.messages else {"role": ""}
        later = _PARTS[_PARTS.index(part) + (part == "tool_calls") :]
        if last["role"] != "assistant" or any(last.get(each) is not None for each in later):
            self._put({"role": "assistant", "content": None}, path)
        return self.messages[-1]

    def _put(
        self, message: dict[str, Any], path: str, places: Mapping[str, str] = _NO_PLACES
    ) -> None:
        self.messages.append(message)
        self.places.append({"": path, **places})

    def told(self, field_path: str) -> str:
        """Return the path of a part of the messages as the sender has spelled it."""
        head, _, rest = field_path.partition(".")
        if head != "messages":
            return field_path
        index, _, inner = rest.partition(".")
        if not index.isdecimal() or int(index) >= len(self.places):
            return "input"
        places = self.places[int(index)]
        above, below = inner, ""
        while above not in places:
            above, _, part = above.rpartition(".")
            below = f".{part}{below}"
        return f"{places[above]}{below}"


def _reasoning_text(item: Mapping[str, Any]) -> str:
    """Return what was thought, or its summary where that alone is told."""
    for name in ("content", "summary"):
        parts = item.get(name) or []
        texts = [part.get("text") for part in parts if isinstance(part, dict)]
        if any(texts):
            return "\n".join(str(text) for text in texts if text)
    return ""
