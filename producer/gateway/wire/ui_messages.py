"""Messages of the AI SDK's chat hooks, read as messages of a chat.

A UI message has parts in place of content: what the model wrote, the calls that it made and what
came of them stand in one message of the assistant, of which each step was an answer of its own.
Source: `convertToModelMessages` of the package `ai`, which other servers of these hooks call.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenbus.producer.gateway.wire.api_error import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROLES = ("system", "user", "assistant")
# Parts that say nothing to a model.
_SILENT = ("data-", "source-")
_DENIED = "Tool call execution denied."
_MAX_MESSAGES = 10_000


def chat_messages(given: object) -> list[dict[str, Any]]:
    """Return the messages of a chat that say what UI messages say.

    Raises: ApiError 400, with the path of what is wrong.
    """
    if not isinstance(given, list) or not given:
        raise _wrong("messages", "has to be a list of UI messages, all of the chat")
    if len(given) > _MAX_MESSAGES:
        raise _wrong("messages", f"are {len(given)}, of {_MAX_MESSAGES} at most")
    messages: list[dict[str, Any]] = []
    for number, message in enumerate(given):
        messages += _read(message, f"messages.{number}")
    return messages


def _read(message: object, path: str) -> list[dict[str, Any]]:
    if not isinstance(message, dict):
        raise _wrong(path, "has to be a UI message")
    role = message.get("role")
    if role not in _ROLES:
        raise _wrong(f"{path}.role", f"has to be one of {', '.join(_ROLES)}")
    parts = _parts(message, path)
    if role == "assistant":
        return [turn for step in _steps(parts) for turn in step.turns()]
    texts = [part["text"] for _, part in parts if part["type"] == "text"]
    for place, part in parts:
        if part["type"] == "file":
            raise _wrong(place, "is a file; the models read text alone")
    if role == "system":
        return [{"role": role, "content": "".join(texts)}]
    content: Any = texts[0] if len(texts) == 1 else [_text_part(text) for text in texts]
    return [{"role": role, "content": content or ""}]


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _parts(message: dict[str, Any], path: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the parts that say something, each with its path and of a known form."""
    given = message.get("parts")
    if given is None and isinstance(message.get("content"), str):
        return [(f"{path}.content", {"type": "text", "text": message["content"]})]
    if not isinstance(given, list):
        raise _wrong(f"{path}.parts", "has to be a list of parts")
    found = []
    for number, part in enumerate(given):
        place = f"{path}.parts.{number}"
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise _wrong(place, "has to be a part with a type")
        kind = part["type"]
        if kind.startswith(_SILENT):
            continue
        if kind in ("text", "reasoning") and not isinstance(part.get("text"), str):
            raise _wrong(f"{place}.text", "has to be a text")
        if not kind.startswith("tool-") and kind not in _KNOWN:
            raise _wrong(f"{place}.type", f"{kind!a:.80} is no part of a message")
        found.append((place, part))
    return found


_KNOWN = frozenset({"text", "reasoning", "file", "step-start", "dynamic-tool"})


@dataclass(slots=True)
class _Step:
    """One answer inside a message of the assistant, and the results of its calls."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)

    def turns(self) -> list[dict[str, Any]]:
        """Return the messages of a chat: the answer, and one for each result."""
        turn: dict[str, Any] = {"role": "assistant", "content": "".join(self.content)}
        if self.reasoning:
            turn["reasoning_content"] = "".join(self.reasoning)
        if self.calls:
            turn["tool_calls"] = self.calls
            turn["content"] = turn["content"] or None
        return [turn, *self.results] if turn["content"] or len(turn) > 2 else []


def _steps(parts: list[tuple[str, dict[str, Any]]]) -> Iterator[_Step]:
    step = _Step()
    for place, part in parts:
        kind = part["type"]
        if kind == "step-start":
            yield step
            step = _Step()
        elif kind == "text":
            step.content.append(part["text"])
        elif kind == "reasoning":
            step.reasoning.append(part["text"])
        elif kind == "file":
            raise _wrong(place, "is a file; the models read text alone")
        else:
            _add_call(step, part, place)
    yield step


def _add_call(step: _Step, part: dict[str, Any], place: str) -> None:
    """Add a call and what came of it; one whose input had not arrived was never made."""
    kind, state, call_id = part["type"], part.get("state"), part.get("toolCallId")
    is_dynamic = kind == "dynamic-tool"
    name = part.get("toolName") if is_dynamic else kind.removeprefix("tool-")
    if not isinstance(name, str) or not name:
        raise _wrong(f"{place}.toolName", "has to be the name of a tool")
    if not isinstance(call_id, str) or not call_id:
        raise _wrong(f"{place}.toolCallId", "has to be the id of a call")
    if not isinstance(state, str):
        raise _wrong(f"{place}.state", "has to be the state of a call")
    if state == "input-streaming":
        return
    given = part.get("input")
    if not isinstance(given, dict):
        if state != "output-error":
            raise _wrong(f"{place}.input", "has to be an object")
        # A call that was cut has no input that could be told.
        return
    call = {"name": name, "arguments": json.dumps(given, ensure_ascii=False)}
    step.calls.append({"id": call_id, "type": "function", "function": call})
    result = _result(part, state)
    if result is not None:
        step.results.append({"role": "tool", "tool_call_id": call_id, "content": result})


def _result(part: dict[str, Any], state: str) -> str | None:
    """Return what a tool answered as a model is told it; None where it has not."""
    if state == "output-available":
        output = part.get("output")
        return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
    if state == "output-error":
        return str(part.get("errorText") or "The tool failed.")
    if state == "output-denied":
        approval = part.get("approval")
        reason = approval.get("reason") if isinstance(approval, dict) else None
        return str(reason or _DENIED)
    return None


def _wrong(path: str, message: str) -> ApiError:
    return ApiError(400, f"{path}: {message}", code="invalid_request", param=path)
