"""Validation of sampling parameters: what cannot be carried out is refused by its field."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.sampling.row_table import MAX_STOP_IDS
from tokenbus.engine.sampling.token_rules import (
    MAX_BAD_WORD_LENGTH,
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenbus.engine.types import SamplingParams

# Alternatives per position; the readback of a step grows with it.
MAX_LOGPROBS = 64


def _require(condition: bool, field: str, message: str) -> None:
    """Raise for `field` unless the condition holds."""
    if not condition:
        raise RequestRejected(field, message)


def _check_ids(ids: Iterable[int], vocab_size: int, field: str) -> None:
    """Raise if a token id lies outside the vocabulary."""
    for token_id in ids:
        _require(
            0 <= token_id < vocab_size,
            field,
            f"token id {token_id} is not in the vocabulary of {vocab_size} tokens",
        )


def _check_numbers(params: SamplingParams) -> None:
    """Raise for a scalar out of its range."""
    _require(params.n >= 1, "n", f"must be at least 1, got {params.n}")
    _require(params.max_tokens >= 1, "max_tokens", f"must be at least 1, got {params.max_tokens}")
    _require(
        0 <= params.min_tokens <= params.max_tokens,
        "min_tokens",
        f"must be from 0 to max_tokens ({params.max_tokens}), got {params.min_tokens}",
    )
    _require(
        math.isfinite(params.temperature) and params.temperature >= 0,
        "temperature",
        f"must be finite and at least 0, got {params.temperature}",
    )
    _require(params.top_k >= 0, "top_k", f"must be at least 0 (0 = off), got {params.top_k}")
    _require(0 < params.top_p <= 1, "top_p", f"must be above 0 and at most 1, got {params.top_p}")
    _require(0 <= params.min_p <= 1, "min_p", f"must be from 0 to 1, got {params.min_p}")
    _require(
        math.isfinite(params.repetition_penalty) and params.repetition_penalty > 0,
        "repetition_penalty",
        f"must be finite and above 0, got {params.repetition_penalty}",
    )
    for field in ("presence_penalty", "frequency_penalty"):
        value = getattr(params, field)
        _require(math.isfinite(value), field, f"must be finite, got {value}")
    for field in ("logprobs", "prompt_logprobs"):
        count = getattr(params, field)
        _require(
            count is None or 0 <= count <= MAX_LOGPROBS,
            field,
            f"must be from 0 to {MAX_LOGPROBS}, got {count}",
        )


def validate_sampling(
    params: SamplingParams, vocab_size: int, eos_token_ids: tuple[int, ...] = ()
) -> None:
    """Raise RequestRejected with the field's name if these parameters cannot be carried out."""
    _check_numbers(params)
    _require(
        len(params.logit_bias) <= MAX_LOGIT_BIAS,
        "logit_bias",
        f"at most {MAX_LOGIT_BIAS} tokens, got {len(params.logit_bias)}",
    )
    _check_ids(params.logit_bias, vocab_size, "logit_bias")
    for token_id, bias in params.logit_bias.items():
        _require(
            bias < math.inf, "logit_bias", f"token {token_id}: must be finite or -inf, got {bias}"
        )
    _require(
        len(params.bad_words) <= MAX_BAD_WORDS,
        "bad_words",
        f"at most {MAX_BAD_WORDS} token sequences, got {len(params.bad_words)}",
    )
    for word in params.bad_words:
        _require(
            1 <= len(word) <= MAX_BAD_WORD_LENGTH,
            "bad_words",
            f"a sequence has 1 to {MAX_BAD_WORD_LENGTH} tokens, got {len(word)}",
        )
        _check_ids(word, vocab_size, "bad_words")
    num_stop_ids = len({*params.stop_token_ids, *eos_token_ids})
    _require(
        num_stop_ids <= MAX_STOP_IDS,
        "stop_token_ids",
        f"at most {MAX_STOP_IDS} ids, those of the model included, got {num_stop_ids}",
    )
    _check_ids(params.stop_token_ids, vocab_size, "stop_token_ids")
