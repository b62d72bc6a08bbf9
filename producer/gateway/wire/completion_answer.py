"""The body of a text completion that was not streamed."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from tokenbus.producer.gateway.wire.finished import ending_of
from tokenbus.producer.gateway.wire.logprob_forms import NO_TEXTS, completion_logprobs, pieces_of
from tokenbus.producer.gateway.wire.usage import summed, usage_body

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenbus.producer.contract.result import Choice, JobResult
    from tokenbus.producer.gateway.wire.logprob_forms import ToldPrompt


def completion_answer(
    results: Sequence[JobResult],
    *,
    wire_id: str,
    created: int,
    model: str,
    tier: str = "",
    with_logprobs: bool = False,
    texts: Mapping[int, str] = NO_TEXTS,
    prompts: Sequence[ToldPrompt] = (),
) -> dict[str, Any]:
    """Return the JSON object; choices are counted over the results, one of each prompt.

    `prompts` are those of the results, where they are told again.
    """
    choices = [
        _choice(result, choice, prompt, texts, with_logprobs=with_logprobs)
        for result, prompt in zip_longest(results, prompts)
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


def _choice(
    result: JobResult,
    choice: Choice,
    prompt: ToldPrompt | None,
    texts: Mapping[int, str],
    *,
    with_logprobs: bool,
) -> dict[str, Any]:
    repeated = prompt if prompt is not None and prompt.is_repeated else None
    before = "" if repeated is None else repeated.text
    logprobs = None
    if with_logprobs:
        entries = choice.logprobs or (None,) * len(choice.ids)
        pieces = pieces_of(choice.text, choice.ends)
        logprobs = completion_logprobs(entries, choice.ids, pieces, len(before), texts)
        if repeated is not None:
            columns = repeated.columns(result.prompt_logprobs, texts)
            logprobs = {name: [*columns[name], *told] for name, told in logprobs.items()}
    ending = ending_of(result.finish, choice.index)
    body: dict[str, Any] = {
        "text": before + choice.text,
        "logprobs": logprobs,
        "finish_reason": ending.reason,
    }
    if ending.stop_reason is not None:
        body["stop_reason"] = ending.stop_reason
    if prompt is not None and prompt.with_logprobs:
        body["prompt_logprobs"] = prompt.logprobs(result.prompt_logprobs, texts)
    return body
