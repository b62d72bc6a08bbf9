"""Validation of sampling parameters: what cannot be carried out is refused by its field."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.sampling.bounds import (
    LOGIT_BIAS,
    MAX_BAD_WORD_LENGTH,
    MAX_BAD_WORDS,
    MAX_GRAMMAR_LENGTH,
    MAX_LOGIT_BIAS,
    MAX_STOP_IDS,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    NUMBERS,
)
from tokenbus.engine.types import GrammarKind, GrammarSpec, SamplingParams

if TYPE_CHECKING:
    from tokenbus.engine.sampling.bounds import Bound

_OPTIONAL = ("logprobs", "prompt_logprobs")
_FLAGS = ("include_stop", "ignore_eos")


def _require(condition: bool, field: str, message: str) -> None:
    """Raise for `field` unless the condition holds."""
    if not condition:
        raise RequestRejected(field, message)


def _shown(value: object) -> str:
    """Return a value for a message, short whatever it is."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _check_number(value: object, bound: Bound, field: str, prefix: str = "") -> None:
    """Raise for what is no number of the bound's kind or lies outside; a bool is no number."""
    kind, what = (Integral, "a whole number") if bound.kind is int else (Real, "a number")
    _require(
        isinstance(value, kind) and not isinstance(value, bool),
        field,
        f"{prefix}must be {what}, got {_shown(value)}",
    )
    number: Any = value
    # NaN is in no range.
    is_inside = bound.low <= number <= bound.high and not (bound.is_open and number == bound.low)
    low = f"above {bound.low}" if bound.is_open else f"from {bound.low}"
    _require(is_inside, field, f"{prefix}must be {low} to {bound.high}, got {_shown(value)}")


def _check_ids(ids: object, vocab_size: int, field: str) -> None:
    """Raise if a token id is no whole number or lies outside the vocabulary."""
    _require(isinstance(ids, (list, tuple)), field, f"must be token ids, got {_shown(ids)}")
    listed: Any = ids
    for token_id in listed:
        _require(
            isinstance(token_id, Integral)
            and not isinstance(token_id, bool)
            and 0 <= token_id < vocab_size,
            field,
            f"token id {_shown(token_id)} is not in the vocabulary of {vocab_size} tokens",
        )


def _check_numbers(params: SamplingParams) -> None:
    """Raise for a scalar out of its range."""
    for field, bound in NUMBERS.items():
        value = getattr(params, field)
        if value is not None or field not in _OPTIONAL:
            _check_number(value, bound, field)
    for field in _FLAGS:
        value = getattr(params, field)
        _require(isinstance(value, bool), field, f"must be true or false, got {_shown(value)}")
    _require(
        params.min_tokens <= params.max_tokens,
        "min_tokens",
        f"must be at most max_tokens ({params.max_tokens}), got {params.min_tokens}",
    )


def _check_count(items: object, most: int, field: str, what: str) -> None:
    """Raise for what is no list or mapping, or has too many entries."""
    _require(isinstance(items, (list, tuple, Mapping)), field, f"holds no {what}: {_shown(items)}")
    listed: Any = items
    _require(len(listed) <= most, field, f"at most {most} {what}, got {len(listed)}")


def _check_texts(params: SamplingParams) -> None:
    """Raise for stop strings and a grammar that are none, or too many or too long."""
    _check_count(params.stop, MAX_STOPS, "stop", "strings")
    for stop in params.stop:
        _require(
            isinstance(stop, str) and 1 <= len(stop) <= MAX_STOP_LENGTH,
            "stop",
            f"a string has 1 to {MAX_STOP_LENGTH} characters, got {_shown(stop)}",
        )
    grammar = params.grammar
    if grammar is None:
        return
    _require(
        isinstance(grammar, GrammarSpec)
        and grammar.kind in list(GrammarKind)
        and isinstance(grammar.source, str),
        "grammar",
        f"must be a GrammarSpec, got {_shown(grammar)}",
    )
    _require(
        1 <= len(grammar.source) <= MAX_GRAMMAR_LENGTH,
        "grammar",
        f"a source has 1 to {MAX_GRAMMAR_LENGTH} characters, got {len(grammar.source)}",
    )


def validate_sampling(
    params: SamplingParams, vocab_size: int, eos_token_ids: tuple[int, ...] = ()
) -> None:
    """Raise RequestRejected with the field's name if these parameters cannot be carried out."""
    _check_numbers(params)
    _check_texts(params)
    _require(
        isinstance(params.logit_bias, Mapping),
        "logit_bias",
        f"must map token ids to numbers, got {_shown(params.logit_bias)}",
    )
    _check_count(params.logit_bias, MAX_LOGIT_BIAS, "logit_bias", "tokens")
    _check_ids(tuple(params.logit_bias), vocab_size, "logit_bias")
    for token_id, bias in params.logit_bias.items():
        _check_number(bias, LOGIT_BIAS, "logit_bias", f"token {token_id}: ")
    _check_count(params.bad_words, MAX_BAD_WORDS, "bad_words", "token sequences")
    for word in params.bad_words:
        _check_ids(word, vocab_size, "bad_words")
        _require(
            1 <= len(word) <= MAX_BAD_WORD_LENGTH,
            "bad_words",
            f"a sequence has 1 to {MAX_BAD_WORD_LENGTH} tokens, got {len(word)}",
        )
    _check_ids(params.stop_token_ids, vocab_size, "stop_token_ids")
    num_stop_ids = len({*params.stop_token_ids, *eos_token_ids})
    _require(
        num_stop_ids <= MAX_STOP_IDS,
        "stop_token_ids",
        f"at most {MAX_STOP_IDS} ids, those of the model included, got {num_stop_ids}",
    )
