"""The body of a text completion that was not streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.producer.gateway.wire.finished import ending_of
from tokenbus.producer.gateway.wire.logprob_forms import NO_TEXTS, completion_logprobs, pieces_of
from tokenbus.producer.gateway.wire.usage import summed, usage_body

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenbus.producer.contract.result import Choice, JobResult


def completion_answer(
    results: Sequence[JobResult],
    *,
    wire_id: str,
    created: int,
    model: str,
    tier: str = "",
    with_logprobs: bool = False,
    texts: Mapping[int, str] = NO_TEXTS,
) -> dict[str, Any]:
    """Return the JSON object; choices are counted over the results, one of each prompt."""
    choices = [
        _choice(result, choice, texts if with_logprobs else None)
        for result in results
        for choice in result.choices
    ]
    body: dict[str, Any] = {
        "id": wire_id,
        "object": "text_completion",
        "created": created,
        "model": model,
        "choices": [{"index": index, **choice} for index, choice in enumerate(choices)],
        "usage": usage_body(summed(result.finish.usage for result in results)),
    }
    if tier:
        body["service_tier"] = tier
    return body


def _choice(result: JobResult, choice: Choice, texts: Mapping[int, str] | None) -> dict[str, Any]:
    logprobs = None
    if texts is not None:
        entries = choice.logprobs or (None,) * len(choice.ids)
        pieces = pieces_of(choice.text, choice.ends)
        logprobs = completion_logprobs(entries, choice.ids, pieces, 0, texts)
    ending = ending_of(result.finish, choice.index)
    body: dict[str, Any] = {
        "text": choice.text,
        "logprobs": logprobs,
        "finish_reason": ending.reason,
    }
    if ending.stop_reason is not None:
        body["stop_reason"] = ending.stop_reason
    return body
