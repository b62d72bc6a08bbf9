"""The response object of OpenAI's API, at any moment of its life."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.engine.chat.usage import Usage
    from tokenbus.producer.contract.events import Finish
    from tokenbus.producer.stored.response_record import ResponseRecord

# By the reason of the job; what is none of them has failed.
_STATUSES = {"stop": "completed", "length": "incomplete", "cancelled": "cancelled"}


def status_of(finish: Finish) -> str:
    """Return how a response has ended."""
    return _STATUSES.get(finish.reason, "failed")


def response_object(
    record: ResponseRecord,
    status: str,
    output: Sequence[dict[str, Any]],
    finish: Finish | None = None,
) -> dict[str, Any]:
    """Return the JSON object; without a `finish` the response goes on."""
    asked = record.request
    wire: dict[str, Any] = {
        "id": record.id,
        "object": "response",
        "created_at": record.created_at,
        "status": status,
        "background": record.background,
        "error": None if finish is None else _error(finish, status),
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "max_tool_calls": asked.get("max_tool_calls"),
        "model": record.model,
        "output": list(output),
        "parallel_tool_calls": asked.get("parallel_tool_calls", True),
        "previous_response_id": record.previous_id,
        "prompt_cache_key": asked.get("prompt_cache_key"),
        "reasoning": {"effort": None, "summary": None} | (asked.get("reasoning") or {}),
        "safety_identifier": asked.get("safety_identifier"),
        "service_tier": asked.get("service_tier") or "default",
        "store": record.store,
        "temperature": asked.get("temperature", 1.0),
        "text": {"format": {"type": "text"}} | (asked.get("text") or {}),
        "tool_choice": asked.get("tool_choice", "auto"),
        "tools": asked.get("tools") or [],
        "top_logprobs": asked.get("top_logprobs", 0),
        "top_p": asked.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": None if finish is None else usage_object(finish.usage),
        "user": asked.get("user"),
        "metadata": asked.get("metadata") or {},
    }
    return wire


def usage_object(usage: Usage) -> dict[str, Any]:
    """Return the token counts."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _error(finish: Finish, status: str) -> dict[str, str] | None:
    if status != "failed":
        return None
    if finish.error is None:
        told = "the deadline passed" if finish.reason == "expired" else f"ended as {finish.reason}"
        return {"code": "server_error", "message": told}
    is_request = finish.error.code in ("invalid_request", "too_large", "prompt_too_long")
    code = "invalid_prompt" if is_request else "server_error"
    return {"code": code, "message": finish.error.message}
