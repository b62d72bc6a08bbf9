"""Validation of sampling parameters: what cannot be carried out is refused by its field."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, nextafter
from numbers import Integral, Real
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn

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
    TOKEN_ID,
)
from tokenbus.engine.types import GrammarKind, GrammarSpec, SamplingParams

if TYPE_CHECKING:
    from tokenbus.engine.sampling.bounds import Bound

_OPTIONAL = ("logprobs", "prompt_logprobs")
_FLAGS = ("include_stop", "ignore_eos")
_numbers_of = attrgetter(*NUMBERS)
# The same bounds with both ends inside.
_CLOSED = [
    (field, bound.kind, nextafter(bound.low, inf) if bound.is_open else bound.low, bound.high)
    for field, bound in NUMBERS.items()
]


def _refuse(field: str, message: str) -> NoReturn:
    """Raise for `field`. Messages are made by those who refuse: nearly nobody does."""
    raise RequestRejected(field, message)


def _shown(value: object) -> str:
    """Return a value for a message, short whatever it is."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _check_number(value: Any, bound: Bound, field: str, prefix: str = "") -> None:
    """Raise for what is no number of the bound's kind or lies outside; a bool is no number."""
    kind = type(value)
    # Abstract kinds of numbers take ten times as long to tell, and are asked for what is neither.
    if kind is not int and kind is not bound.kind:
        wanted, what = (Integral, "a whole number") if bound.kind is int else (Real, "a number")
        if kind is bool or not isinstance(value, wanted):
            _refuse(field, f"{prefix}must be {what}, got {_shown(value)}")
    # NaN is in no range.
    if not bound.low <= value <= bound.high or (bound.is_open and value == bound.low):
        low = f"above {bound.low}" if bound.is_open else f"from {bound.low}"
        _refuse(field, f"{prefix}must be {low} to {bound.high}, got {_shown(value)}")


def _check_ids(ids: Any, vocab_size: int, field: str) -> None:
    """Raise if a token id is no whole number or lies outside the vocabulary."""
    if not isinstance(ids, (list, tuple)):
        _refuse(field, f"must be token ids, got {_shown(ids)}")
    for token_id in ids:
        is_whole = isinstance(token_id, Integral) and not isinstance(token_id, bool)
        if not is_whole or not TOKEN_ID.low <= int(token_id) < vocab_size:
            of = f"the vocabulary of {vocab_size} tokens"
            _refuse(field, f"token id {_shown(token_id)} is not in {of}")


def _check_numbers(params: SamplingParams) -> None:
    """Raise for a scalar out of its range."""
    for value, (field, kind, low, high) in zip(_numbers_of(params), _CLOSED, strict=True):
        if value is None:
            is_fine = field in _OPTIONAL
        else:
            # What nearly every number is; every job has thirteen.
            is_fine = (type(value) is kind or type(value) is int) and low <= value <= high
        if not is_fine:
            _check_number(value, NUMBERS[field], field)
    for field in _FLAGS:
        value = getattr(params, field)
        if not isinstance(value, bool):
            _refuse(field, f"must be true or false, got {_shown(value)}")
    if params.min_tokens > params.max_tokens:
        most = f"max_tokens ({params.max_tokens})"
        _refuse("min_tokens", f"must be at most {most}, got {params.min_tokens}")


def _check_count(items: Any, most: int, field: str, what: str) -> None:
    """Raise for what is no list or mapping, or has too many entries."""
    if not isinstance(items, (list, tuple, dict, Mapping)):
        _refuse(field, f"holds no {what}: {_shown(items)}")
    if len(items) > most:
        _refuse(field, f"at most {most} {what}, got {len(items)}")


def _check_texts(params: SamplingParams) -> None:
    """Raise for stop strings and a grammar that are none, or too many or too long."""
    _check_count(params.stop, MAX_STOPS, "stop", "strings")
    for stop in params.stop:
        if not isinstance(stop, str) or not 1 <= len(stop) <= MAX_STOP_LENGTH:
            bounds = f"1 to {MAX_STOP_LENGTH} characters"
            _refuse("stop", f"a string has {bounds}, got {_shown(stop)}")
    grammar = params.grammar
    if grammar is None:
        return
    is_spec = (
        isinstance(grammar, GrammarSpec)
        and grammar.kind in list(GrammarKind)
        and isinstance(grammar.source, str)
    )
    if not is_spec:
        _refuse("grammar", f"must be a GrammarSpec, got {_shown(grammar)}")
    if not 1 <= len(grammar.source) <= MAX_GRAMMAR_LENGTH:
        bounds = f"1 to {MAX_GRAMMAR_LENGTH} characters"
        _refuse("grammar", f"a source has {bounds}, got {len(grammar.source)}")


def _check_token_rules(params: SamplingParams, vocab_size: int) -> None:
    """Raise for biases and forbidden words that are none, too many, or of no token."""
    biases = params.logit_bias
    if not isinstance(biases, (dict, Mapping)):
        what = _shown(biases)
        _refuse("logit_bias", f"must map token ids to numbers, got {what}")
    if biases:
        _check_count(biases, MAX_LOGIT_BIAS, "logit_bias", "tokens")
        _check_ids(tuple(biases), vocab_size, "logit_bias")
        for token_id, bias in biases.items():
            _check_number(bias, LOGIT_BIAS, "logit_bias", f"token {token_id}: ")
    _check_count(params.bad_words, MAX_BAD_WORDS, "bad_words", "token sequences")
    for word in params.bad_words:
        _check_ids(word, vocab_size, "bad_words")
        if not 1 <= len(word) <= MAX_BAD_WORD_LENGTH:
            bounds = f"1 to {MAX_BAD_WORD_LENGTH} tokens"
            _refuse("bad_words", f"a sequence has {bounds}, got {len(word)}")


def validate_sampling(
    params: SamplingParams, vocab_size: int, eos_token_ids: tuple[int, ...] = ()
) -> None:
    """Raise RequestRejected with the field's name if these parameters cannot be carried out."""
    _check_numbers(params)
    _check_texts(params)
    _check_token_rules(params, vocab_size)
    _check_ids(params.stop_token_ids, vocab_size, "stop_token_ids")
    num_stop_ids = len({*params.stop_token_ids, *eos_token_ids})
    if num_stop_ids > MAX_STOP_IDS:
        most = f"at most {MAX_STOP_IDS} ids, those of the model included"
        _refuse("stop_token_ids", f"{most}, got {num_stop_ids}")
