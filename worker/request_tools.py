"""The tools of a request, as templates and readers of answers take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

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


def has_tools(request: bytes) -> bool:
    """Tell from a stored request, before it is read, whether it gives tools."""
    return b'"tools":' in request
