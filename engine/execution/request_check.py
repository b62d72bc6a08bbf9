"""The check of a request against model, batch and pool, before anything is set up for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.errors import RequestRejected, SequenceTooLong
from tokenbus.engine.sampling.validation import validate_sampling
from tokenbus.engine.text.prompt_ids import all_within, id_range

if TYPE_CHECKING:
    from tokenbus.engine.types import EngineLimits, Request


def check_request(request: Request, limits: EngineLimits) -> None:
    """Refuse what this engine cannot carry out.

    Raises: RequestRejected with the field's name; SequenceTooLong with the numbers.
    """
    params = request.params
    _check_labels(request)
    if not request.prompt_ids:
        raise RequestRejected("prompt_ids", "the prompt has no token")
    if not all_within(request.prompt_ids, limits.vocab_size):
        low, high = id_range(request.prompt_ids)
        bad = low if low < 0 else high
        raise RequestRejected(
            "prompt_ids", f"token id {bad} is not in the vocabulary of {limits.vocab_size}"
        )
    validate_sampling(params, limits.vocab_size, limits.eos_token_ids)
    _check_resumed(request, limits)
    if params.n > limits.max_num_seqs:
        raise RequestRejected("n", f"{params.n} choices, the batch holds {limits.max_num_seqs}")
    total = len(request.prompt_ids) + params.max_tokens
    told = too_long(len(request.prompt_ids), params.max_tokens, limits.max_model_len)
    if told is not None:
        raise SequenceTooLong(told)
    need, have = -(-total // limits.page_size), limits.num_pages - 1
    if need > have:
        raise SequenceTooLong(
            f"{total} tokens need {need} pages of {limits.page_size} tokens, the pool has {have}"
        )


def too_long(num_prompt: int, max_tokens: int, limit: int) -> str | None:
    """Say by how much prompt and output exceed a context of `limit` tokens; None if they fit."""
    if num_prompt + max_tokens <= limit:
        return None
    if num_prompt >= limit:
        return f"{num_prompt} tokens leave no room for output in a context of {limit}"
    return (
        f"{num_prompt} prompt tokens and {max_tokens} to generate exceed the context of {limit}"
        f" tokens; at most {limit - num_prompt} fit"
    )


def _check_labels(request: Request) -> None:
    """Refuse what scheduler and prefix cache cannot sort or hash by."""
    is_whole = isinstance(request.priority, int) and not isinstance(request.priority, bool)
    if not is_whole:
        raise RequestRejected("priority", "must be a whole number")
    for name in ("cache_salt", "lane"):
        text = getattr(request, name)
        if not isinstance(text, str):
            raise RequestRejected(name, "must be text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestRejected(name, f"must be valid text: {error.reason}") from None


def _check_resumed(request: Request, limits: EngineLimits) -> None:
    """Refuse tokens of an earlier owner that this model cannot go on from."""
    params = request.params
    if request.resumed_ids and len(request.resumed_ids) != params.n:
        lists = len(request.resumed_ids)
        raise RequestRejected("resumed_ids", f"{lists} lists for {params.n} choices")
    for choice, ids in enumerate(request.resumed_ids):
        if not ids:
            continue
        low, high = id_range(ids)
        if low < 0 or high >= limits.vocab_size:
            raise RequestRejected("resumed_ids", f"{low} to {high} are not all in the vocabulary")
        if choice not in request.done_choices and len(ids) >= params.max_tokens:
            raise RequestRejected(
                "resumed_ids", f"{len(ids)} tokens leave none of max_tokens {params.max_tokens}"
            )
