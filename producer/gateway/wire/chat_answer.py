"""The body of a chat completion that was not streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.producer.gateway.wire.finished import ending_of
from tokenbus.producer.gateway.wire.logprob_forms import NO_TEXTS, chat_logprob, pieces_of
from tokenbus.producer.gateway.wire.usage import usage_body

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenbus.producer.contract.result import Choice, JobResult
    from tokenbus.producer.gateway.wire.logprob_forms import ToldPrompt


def chat_answer(
    result: JobResult,
    *,
    wire_id: str,
    created: int,
    model: str,
    tier: str = "",
    with_logprobs: bool = False,
    texts: Mapping[int, str] = NO_TEXTS,
    prompts: Sequence[ToldPrompt] = (),
) -> dict[str, Any]:
    """Return the JSON object. Messages are what their deltas are, joined.

    `prompts` has the prompt whose logprobs are told, where they were asked for.
    """
    body: dict[str, Any] = {
        "id": wire_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            _choice(result, choice, texts if with_logprobs else None) for choice in result.choices
        ],
        "usage": usage_body(result.finish.usage),
    }
    if tier:
        body["service_tier"] = tier
    if prompts:
        body["prompt_logprobs"] = prompts[0].logprobs(result.prompt_logprobs, texts)
    return body


def message_body(choice: Choice) -> dict[str, Any]:
    """Return the message of a choice; a call that its end has cut is told as far as it came."""
    message = choice.message
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in message.calls
    ]
    has_more = bool(calls or message.reasoning)
    body: dict[str, Any] = {
        "role": "assistant",
        "content": message.content if message.content or not has_more else None,
        "refusal": None,
    }
    if message.reasoning:
        body["reasoning_content"] = message.reasoning
    if calls:
        body["tool_calls"] = calls
    return body


def _choice(result: JobResult, choice: Choice, texts: Mapping[int, str] | None) -> dict[str, Any]:
    logprobs = None
    if texts is not None:
        entries = choice.logprobs or (None,) * len(choice.ids)
        pieces = pieces_of(choice.text, choice.ends)
        logprobs = {
            "content": [
                chat_logprob(entry, token_id, piece, texts)
                for entry, token_id, piece in zip(entries, choice.ids, pieces, strict=True)
            ],
            "refusal": None,
        }
    ending = ending_of(result.finish, choice.index)
    body = {
        "index": choice.index,
        "message": message_body(choice),
        "logprobs": logprobs,
        "finish_reason": ending.reason,
    }
    if ending.stop_reason is not None:
        body["stop_reason"] = ending.stop_reason
    return body
