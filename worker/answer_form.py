"""The form of answers: with which tools they are written, and how they are to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.producer.contract.messages.job_chat import JobChat, typing_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from tokenbus.engine.chat.chat_format import ChatFormat
    from tokenbus.producer.contract.schema import JobRequest


def tool_dicts(request: JobRequest) -> list[dict[str, Any]]:
    """Return the tools that the model may call, in the form that templates take."""
    if request.tools is None or request.tool_choice == "none":
        return []
    listed = [tool.model_dump(exclude_none=True) for tool in request.tools]
    for tool in listed:
        tool["function"]["parameters"] = tool["function"]["parameters"] or {
            "type": "object",
            "properties": {},
        }
    return listed


def chat_of(
    chat_format: ChatFormat,
    tools: Iterable[Mapping[str, Any]],
    *,
    starts_in_reasoning: bool = False,
) -> JobChat | None:
    """Return how the answers to a conversation are read; None if they are nothing but content.

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
    return JobChat(chat_format.name, schemas, starts_in_reasoning)


def _needs_types(chat_format: ChatFormat) -> bool:
    """Tell whether the format writes values without quotes, so that schemas say what they are."""
    calls = chat_format.calls
    return calls is not None and any(
        each.parameters is not None for each in (calls, *calls.also_read)
    )
