"""Messages of a chat, as clients of other servers write them: brought to one spelling.

A message is a dict or what the OpenAI client returned. Its content is text or a list of parts; text
parts are joined by line breaks. What a server adds to its answers and nobody reads, as
`annotations`, is left out. Former `function_call`s and results of the role `function` become tool
calls and their results.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tokenbus.engine.chat.requests.bounds import ROLE_PATTERN
from tokenbus.engine.chat.requests.json_values import check_json
from tokenbus.engine.chat.requests.shape_error import ShapeInvalid
from tokenbus.engine.chat.requests.value_checks import (
    json_told,
    object_problem,
    shown,
    text_problem,
)
from tokenbus.engine.chat.requests.waiting_calls import WaitingCalls, id_of, spell_id

_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_THOUGHT_PARTS = {"thinking": "thinking", "reasoning": "text"}
_MEDIA_PARTS = frozenset(
    {
        "image_url", "image", "input_image", "image_embeds", "image_pil", "input_audio", "audio",
        "audio_url", "video", "video_url", "file", "input_file", "document",
    }
)  # fmt: skip
_PLAIN = frozenset({"role", "content"})
_RESULTS = ("tool", "function")
_TEXTS = ("role", "content", "name", "reasoning_content", "tool_call_id")
_KEPT = ("role", "name", "tool_call_id")
# What servers add to their answers, and what belongs to caches of others.
_UNREAD = frozenset(
    {
        "annotations", "parsed", "provider_specific_fields", "thinking_blocks",
        "reasoning_details", "cache_control", "weight",
    }
)  # fmt: skip
_UNREAD_OF_PARTS = frozenset(
    {"cache_control", "prompt_cache_breakpoint", "annotations", "logprobs", "index", "id"}
)
_READ = frozenset(
    {
        *_KEPT, "content", "refusal", "audio", "tool_calls", "function_call", "reasoning_content",
        "reasoning", "prefix",
    }
)  # fmt: skip


def as_mapping(value: Any, path: str, what: str) -> Mapping[str, Any]:
    """Return a dict, or the fields of a model that dumps itself. Raises: ShapeInvalid."""
    if isinstance(value, Mapping):
        return value
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        fields = dump()
        if isinstance(fields, Mapping):
            return fields
    raise ShapeInvalid(path, f"must be {what}, got {type(value).__name__}")


def are_plain(messages: Any) -> bool:
    """Tell whether messages have one spelling already: nothing but roles and texts."""
    if type(messages) is not list or not messages:
        return False
    for message in messages:
        is_plain = type(message) is dict and message.keys() == _PLAIN
        if not is_plain or type(message["content"]) is not str or message["role"] in _RESULTS:
            return False
    return True


def shaped_messages(messages: Any, path: str = "messages") -> tuple[list[dict[str, Any]], bool]:
    """Return the messages of a chat in one spelling, and whether the last is to be continued.

    Raises: ShapeInvalid with the path of the part.
    """
    if not isinstance(messages, (list, tuple)):
        raise ShapeInvalid(path, f"must be a list of messages, got {type(messages).__name__}")
    if not messages:
        raise ShapeInvalid(path, "must hold at least one message")
    shaped: list[dict[str, Any]] = []
    continues = False
    waiting: WaitingCalls[Any] = WaitingCalls()
    for idx, message in enumerate(messages):
        where = f"{path}.{idx}"
        fields = as_mapping(message, where, "a message")
        if fields.get("prefix"):
            continues = _is_prefix(fields, where, is_last=idx == len(messages) - 1)
        turn = _shaped_message(fields, shaped, where)
        _check_texts(turn, where)
        if "tool_calls" in turn:
            waiting.begin((id_of(call), call) for call in turn["tool_calls"])
        elif turn["role"] == "tool" and waiting.take(id_of(turn, "tool_call_id")) is None:
            raise ShapeInvalid(f"{where}.tool_call_id", "names no earlier call")
        shaped.append(turn)
    return shaped, continues


def _is_prefix(fields: Mapping[str, Any], where: str, *, is_last: bool) -> bool:
    """Tell whether a message asks to be continued, as some servers spell it."""
    if fields["prefix"] is not True or not is_last or fields.get("role") != "assistant":
        raise ShapeInvalid(f"{where}.prefix", "true only of a last message of the assistant")
    return True


def _check_texts(turn: dict[str, Any], where: str) -> None:
    """Refuse texts of a message that are none, and what templates take for a role."""
    for name in _TEXTS:
        told = None if turn.get(name) is None else text_problem(turn[name])
        if told is not None:
            raise ShapeInvalid(f"{where}.{name}", told)
    if re.fullmatch(ROLE_PATTERN, turn["role"]) is None:
        allowed = "a role has 1 to 64 letters, digits and _.:@/-"
        raise ShapeInvalid(f"{where}.role", f"{allowed}, got {shown(turn['role'])}")
    for idx, call in enumerate(turn.get("tool_calls", ())):
        try:
            check_json(call)
        except ValueError as error:
            raise ShapeInvalid(f"{where}.tool_calls.{idx}", json_told(error)) from None


def _shaped_message(
    fields: Mapping[str, Any], before: list[dict[str, Any]], where: str
) -> dict[str, Any]:
    for name, value in fields.items():
        if name not in _READ and name not in _UNREAD and value is not None:
            raise ShapeInvalid(f"{where}.{name}", "is no field of a message")
    if fields.get("role") is None:
        raise ShapeInvalid(f"{where}.role", "is missing")
    if fields.get("audio") is not None:
        raise ShapeInvalid(f"{where}.audio", "no audio is taken: the models here read text alone")
    message = {name: fields[name] for name in _KEPT if fields.get(name) is not None}
    spell_id(message, "tool_call_id", where)
    content, thoughts = _content(fields, where)
    if content is not None or "content" in fields:
        message["content"] = content
    reasoning = _reasoning(fields, where)
    if reasoning is None and thoughts:
        reasoning = "\n".join(thoughts)
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    calls = _calls(fields, len(before), where)
    if calls:
        message["tool_calls"] = calls
    if message["role"] == "function":
        _become_result(message, before, where)
    return message


def _content(fields: Mapping[str, Any], where: str) -> tuple[str | None, list[str]]:
    """Return the text of a message, a refusal of its assistant with it, and its thoughts."""
    given, path = fields.get("content"), f"{where}.content"
    thoughts: list[str] = []
    if given is None or isinstance(given, str):
        content: str | None = given
    elif isinstance(given, (list, tuple)):
        texts = [
            text
            for idx, part in enumerate(given)
            if (text := _part_text(part, f"{path}.{idx}", thoughts)) is not None
        ]
        # An assistant that only calls has none at all, which templates ask for.
        is_none = not texts and fields.get("role") == "assistant"
        content = None if is_none else "\n".join(texts)
    else:
        raise ShapeInvalid(path, f"must be text or a list of parts, got {type(given).__name__}")
    refusal = fields.get("refusal")
    if refusal is None:
        return content, thoughts
    if not isinstance(refusal, str):
        raise ShapeInvalid(f"{where}.refusal", "must be text")
    return "\n".join(text for text in (content, refusal) if text), thoughts


def _part_text(part: Any, path: str, thoughts: list[str] | None) -> str | None:
    """Return the text of a part; what an assistant thought goes to `thoughts`, if there are any."""
    if isinstance(part, str):
        return part
    fields = as_mapping(part, path, "a part of a message")
    kind = fields.get("type", "text")
    if not isinstance(kind, str):
        raise ShapeInvalid(f"{path}.type", "must be text")
    if kind in _THOUGHT_PARTS and thoughts is not None:
        thoughts += _thoughts(fields.get(_THOUGHT_PARTS[kind]), path)
        return None
    if kind in _MEDIA_PARTS:
        raise ShapeInvalid(path, f"no {kind} is taken: the models here read text alone")
    if kind not in _TEXT_PARTS:
        raise ShapeInvalid(path, f"no part of type {kind[:40]} is known; write parts of type text")
    name = _TEXT_PARTS[kind]
    for other, value in fields.items():
        if other not in ("type", name) and other not in _UNREAD_OF_PARTS and value is not None:
            raise ShapeInvalid(f"{path}.{other}", f"is no field of a part of type {kind}")
    if not isinstance(fields.get(name), str):
        raise ShapeInvalid(f"{path}.{name}", "must be text")
    return str(fields[name])


def _thoughts(given: Any, path: str) -> list[str]:
    if isinstance(given, str):
        return [given]
    if not isinstance(given, (list, tuple)):
        raise ShapeInvalid(path, "holds no text")
    texts = [_part_text(part, f"{path}.{idx}", None) for idx, part in enumerate(given)]
    return [text for text in texts if text is not None]


def _reasoning(fields: Mapping[str, Any], where: str) -> str | None:
    """Return what the assistant thought, under either of its two names."""
    found: str | None = None
    for name in ("reasoning_content", "reasoning"):
        given = fields.get(name)
        if given is None:
            continue
        if not isinstance(given, str):
            raise ShapeInvalid(f"{where}.{name}", "must be text")
        if found is not None and given != found:
            raise ShapeInvalid(f"{where}.{name}", "differs from reasoning_content")
        found = given
    return found


def _calls(fields: Mapping[str, Any], number: int, where: str) -> list[dict[str, Any]]:
    given = fields.get("tool_calls")
    calls: list[dict[str, Any]] = []
    if given is not None:
        path = f"{where}.tool_calls"
        if not isinstance(given, (list, tuple)):
            raise ShapeInvalid(path, f"must be a list of calls, got {type(given).__name__}")
        calls = [_shaped_call(call, f"{path}.{idx}") for idx, call in enumerate(given)]
    former = fields.get("function_call")
    if former is not None:
        path = f"{where}.function_call"
        function = _function(as_mapping(former, path, "a call"), path)
        calls.append({"id": f"call_{number}", "type": "function", "function": function})
    if calls and fields["role"] != "assistant":
        name = "tool_calls" if former is None else "function_call"
        raise ShapeInvalid(f"{where}.{name}", "stand in messages of the assistant alone")
    return calls


def _shaped_call(call: Any, path: str) -> dict[str, Any]:
    fields = dict(as_mapping(call, path, "a call"))
    spell_id(fields, "id", path)
    kind = fields.get("type")
    if kind not in (None, "function"):
        raise ShapeInvalid(f"{path}.type", "is not function: no other tools are called here")
    if fields.get("function") is None:
        if "name" not in fields:
            raise ShapeInvalid(f"{path}.function", "is missing")
        return _function(fields, path)
    function = as_mapping(fields["function"], f"{path}.function", "a call")
    kept = {
        name: value
        for name, value in fields.items()
        if value is not None and name not in ("index", "function", "type")
    }
    return {**kept, "type": "function", "function": _function(function, f"{path}.function")}


def _function(fields: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return name and arguments of a call, which are JSON text of an object or the object."""
    if not isinstance(fields.get("name"), str) or not fields["name"].strip():
        raise ShapeInvalid(f"{path}.name", "must be the name of a function")
    arguments = fields.get("arguments")
    if arguments is not None and not isinstance(arguments, (str, Mapping)):
        raise ShapeInvalid(f"{path}.arguments", "must be JSON text or an object")
    kept = {
        name: value
        for name, value in fields.items()
        if value is not None and name not in ("arguments", "parsed_arguments", "index")
    }
    given = dict(arguments) if isinstance(arguments, Mapping) else arguments
    # A call without arguments has none of their text, as servers stream it.
    is_none = given is None or (isinstance(given, str) and not given.strip())
    told = None if is_none or not isinstance(given, str) else object_problem(given)
    if told is not None:
        raise ShapeInvalid(f"{path}.arguments", told)
    return {**kept, "arguments": "{}" if is_none else given}


def _become_result(message: dict[str, Any], before: list[dict[str, Any]], where: str) -> None:
    """Turn a former result of a function into that of the call it belongs to."""
    name = message.get("name")
    for earlier in reversed(before):
        for call in reversed(earlier.get("tool_calls", ())):
            if call.get("function", call).get("name") == name and "id" in call:
                message |= {"role": "tool", "tool_call_id": call["id"]}
                return
    raise ShapeInvalid(f"{where}.name", "is no function that was called before")
