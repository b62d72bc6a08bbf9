"""Usage of tokens in OpenAI's shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable


def usage_body(usage: Usage) -> dict[str, Any]:
    """Return the JSON object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def summed(usages: Iterable[Usage]) -> Usage:
    """Return the usage of several jobs together."""
    total = Usage()
    for usage in usages:
        total = Usage(
            total.prompt_tokens + usage.prompt_tokens,
            total.cached_tokens + usage.cached_tokens,
            total.completion_tokens + usage.completion_tokens,
            total.reasoning_tokens + usage.reasoning_tokens,
        )
    return total
