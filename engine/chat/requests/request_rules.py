"""Rules across fields of a request: which go together, with the sentences of both doors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenbus.engine.chat.requests.bounds import MAX_TOOLS
from tokenbus.engine.chat.requests.message_shapes import shaped_messages
from tokenbus.engine.chat.requests.request_shapes import REQUEST_FIELDS, Shaped
from tokenbus.engine.chat.requests.shape_error import ShapeInvalid
from tokenbus.engine.chat.requests.value_checks import (
    CHECKED_FIELDS,
    shown,
    text_problem,
    value_problem,
)

TOOL_NAME_PATTERN = r"^[A-Za-z0-9_.-]{1,64}$"
UNKNOWN_FIELD = "is no field of a request"
LARK_BESIDE_TOOLS = (
    "a grammar in Lark stands not beside tools that the model may call or not; "
    "give a JSON schema, a pattern or a choice, or another tool_choice"
)
_FUNCTION_FIELDS = frozenset({"name", "description", "parameters", "strict"})
# What a template gets from elsewhere: no arguments of a request may take their place.
_OF_TEMPLATES = frozenset(
    {
        "messages", "tools", "documents", "add_generation_prompt", "continue_final_message",
        "chat_template", "tokenize",
    }
)  # fmt: skip
_OF_CHATS = ("chat_template_kwargs", "continue_final_message")


def check_values(request: Shaped) -> None:
    """Refuse an unknown field and a value that is wrong.

    Raises: ShapeInvalid with the path in our spelling, see `Shaped.told`.
    """
    for name, value in request.fields.items():
        if name not in REQUEST_FIELDS:
            raise ShapeInvalid(str(name), UNKNOWN_FIELD)
        if name in CHECKED_FIELDS:
            problem = value_problem(name, value)
            if problem is not None:
                below, told = problem
                raise ShapeInvalid(f"{name}.{below}" if below else name, told)
    check_tools(request.fields.get("tools") or ())
    if "messages" in request.fields:
        shaped_messages(request.fields["messages"])


def check_tools(tools: Any) -> None:
    """Refuse tools that no model can be told of. Raises: ShapeInvalid."""
    if len(tools) > MAX_TOOLS:
        raise ShapeInvalid("tools", f"at most {MAX_TOOLS} tools, got {len(tools)}")
    for idx, tool in enumerate(tools):
        function, where = tool["function"], f"tools.{idx}.function"
        for name in function:
            if name not in _FUNCTION_FIELDS:
                raise ShapeInvalid(f"{where}.{name}", "is no field of a function")
        name = function.get("name")
        if not isinstance(name, str) or re.fullmatch(TOOL_NAME_PATTERN, name) is None:
            allowed = "a name has 1 to 64 letters, digits, '_', '.' and '-'"
            raise ShapeInvalid(f"{where}.name", f"{allowed}, got {shown(name)}")
        told = text_problem(function.get("description", ""))
        if told is not None:
            raise ShapeInvalid(f"{where}.description", told)
        problem = value_problem("chat_template_kwargs", function.get("parameters", {}))
        if problem is not None:
            raise ShapeInvalid(f"{where}.parameters", problem[1])
        if not isinstance(function.get("strict", False), bool):
            raise ShapeInvalid(f"{where}.strict", "must be true or false")


def check_together(fields: Mapping[str, Any], *, is_chat: bool) -> None:
    """Refuse fields that contradict each other; those left out have their defaults.

    `fields` has lengths as numbers, tools as dicts, `tool_choice` as text or `{"name": …}`, and the
    kind of a grammar.
    Raises: ShapeInvalid.
    """
    tools = fields.get("tools") or ()
    choice = fields.get("tool_choice", "auto")
    min_tokens, max_tokens = fields["min_tokens"], fields["max_tokens"]
    if min_tokens > max_tokens:
        raise ShapeInvalid("min_tokens", f"{min_tokens} exceeds max_tokens {max_tokens}")
    if tools and not is_chat:
        raise ShapeInvalid("tools", "only together with messages")
    if not tools and choice not in ("auto", "none"):
        raise ShapeInvalid("tool_choice", "only together with tools")
    grammar = fields.get("grammar")
    if tools and choice == "auto" and grammar is not None and grammar["kind"] == "lark":
        raise ShapeInvalid("grammar", LARK_BESIDE_TOOLS)
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise ShapeInvalid("tools", "two have the same name")
    if isinstance(choice, Mapping) and choice["name"] not in names:
        raise ShapeInvalid("tool_choice", f"{choice['name']} is not among the tools")
    _check_template(fields, is_chat=is_chat)


def _check_template(fields: Mapping[str, Any], *, is_chat: bool) -> None:
    """Refuse what is asked of a chat template that is not applied, or twice."""
    if not is_chat:
        for name in _OF_CHATS:
            if fields.get(name):
                raise ShapeInvalid(name, "only together with messages")
        if fields.get("max_reasoning_tokens") is not None:
            raise ShapeInvalid("max_reasoning_tokens", "only together with messages")
    for name in fields.get("chat_template_kwargs") or ():
        if name in _OF_TEMPLATES:
            why = "is no argument of the template's own; a field of the request says it, if any"
            raise ShapeInvalid(f"chat_template_kwargs.{name}", why)
    continues = fields.get("continue_final_message", False)
    if continues and fields.get("add_generation_prompt", True):
        raise ShapeInvalid("continue_final_message", "not together with add_generation_prompt")


def model_names(model: str, others: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a model: as it was given, those that were added, that of its folder."""
    names = (model, *others, model.rstrip("/").rpartition("/")[2])
    return tuple(dict.fromkeys(name for name in names if name))


def check_model(asked: str, names: Sequence[str]) -> None:
    """Refuse a request for another model than the one of these names. Raises: ShapeInvalid."""
    if asked not in names:
        served = " or ".join(names)
        raise ShapeInvalid("model", f"{shown(asked)} is not served here; ask for {served:.200}")
