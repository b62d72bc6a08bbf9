"""Conversations as a model reads them: through its chat template, with the tools it may call.

A template that knows no tools gets them in the system message, and earlier calls as text, written
the way the model is told to write them.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tokenbus.engine.grammar.tool_format import detect_tool_format
from tokenbus.engine.grammar.tools import tool_template

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from tokenbus.engine.grammar.tool_calls import ToolCalling

_KNOWS_TOOLS = re.compile(r"\btools\b|\btool_calls\b")


def chat_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    calling: ToolCalling | None = None,
) -> str:
    """Return the prompt of a conversation, ready for the answer; special tokens are in it.

    Args:
        tools: as chat APIs spell them, for the template.
        calling: the same tools, for a template that knows none.
    Raises: whatever the template raises; it is a program that comes with the model.
    """
    turns = [_with_objects(message) for message in messages]
    template = tool_template(tokenizer) or ""
    knows_tools = _KNOWS_TOOLS.search(template) is not None
    if not knows_tools:
        turns = [_with_written_calls(turn, template) for turn in turns]
        if calling is not None:
            turns = _with_system_note(turns, calling.instructions())
    listed: Any = [dict(tool) for tool in tools] if tools and knows_tools else None
    return str(
        tokenizer.apply_chat_template(
            turns, tools=listed, add_generation_prompt=True, tokenize=False
        )
    )


def _with_objects(message: Mapping[str, Any]) -> dict[str, Any]:
    """Give every call its arguments as an object: APIs send text, templates dump objects."""
    turn = dict(message)
    calls = []
    for call in turn.get("tool_calls") or ():
        function = dict(call.get("function", call))
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            # What is no JSON reaches the template as it is.
            with suppress(ValueError):
                function["arguments"] = json.loads(arguments)
        named = {"id": call["id"]} if "id" in call else {}
        calls.append({"type": "function", **named, "function": function})
    if turn.get("content") is None:
        turn["content"] = ""
    if calls:
        turn["tool_calls"] = calls
    return turn


def _with_written_calls(turn: dict[str, Any], template: str) -> dict[str, Any]:
    """Move calls into the text of their message."""
    calls = turn.pop("tool_calls", None)
    if not calls:
        return turn
    functions = [call["function"] for call in calls]
    written = detect_tool_format(template).write(
        (function["name"], json.dumps(function.get("arguments") or {}, ensure_ascii=False))
        for function in functions
    )
    return {**turn, "content": turn["content"] + written}


def _with_system_note(turns: list[dict[str, Any]], note: str) -> list[dict[str, Any]]:
    """Add a note to the system message, or one that is nothing but the note."""
    if turns and turns[0].get("role") == "system":
        first = turns[0]
        content = "\n\n".join(part for part in (first.get("content"), note) if part)
        return [{**first, "content": content}, *turns[1:]]
    return [{"role": "system", "content": note}, *turns]
