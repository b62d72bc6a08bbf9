"""The check of a request against model, batch and pool, before anything is set up for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.errors import RequestRejected, SequenceTooLong
from tokenbus.engine.sampling.validation import validate_sampling
from tokenbus.engine.text.prompt_ids import id_range

if TYPE_CHECKING:
    from tokenbus.engine.types import EngineLimits, Request


def check_request(request: Request, limits: EngineLimits) -> None:
    """Refuse what this engine cannot carry out.

    Raises: RequestRejected with the field's name; SequenceTooLong with the numbers.
    """
    params = request.params
    if not request.prompt_ids:
        raise RequestRejected("prompt_ids", "the prompt has no token")
    low, high = id_range(request.prompt_ids)
    if low < 0 or high >= limits.vocab_size:
        bad = low if low < 0 else high
        raise RequestRejected(
            "prompt_ids", f"token id {bad} is not in the vocabulary of {limits.vocab_size}"
        )
    validate_sampling(params, limits.vocab_size, limits.eos_token_ids)
    if params.n > limits.max_num_seqs:
        raise RequestRejected("n", f"{params.n} choices, the batch holds {limits.max_num_seqs}")
    total = len(request.prompt_ids) + params.max_tokens
    if total > limits.max_model_len:
        raise SequenceTooLong(
            f"{len(request.prompt_ids)} prompt tokens + max_tokens {params.max_tokens}"
            f" = {total}, the limit is {limits.max_model_len}"
        )
    need, have = -(-total // limits.page_size), limits.num_pages - 1
    if need > have:
        raise SequenceTooLong(
            f"{total} tokens need {need} pages of {limits.page_size} tokens, the pool has {have}"
        )
