"""Validation of sampling parameters: what cannot be carried out is refused by its field."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, nextafter
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn

from tokenbus.engine.chat.requests.bounds import (
    MAX_GRAMMAR_LENGTH,
    MAX_STOP_IDS,
    NUMBERS,
    TOKEN_ID,
)
from tokenbus.engine.chat.requests.value_checks import number_problem, shown, value_problem
from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.types import GrammarKind, GrammarSpec, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterable

# What may be left open: nothing is asked for, or the caller draws.
_OPTIONAL = ("logprobs", "prompt_logprobs", "seed")
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


def _check(field: str, value: Any) -> None:
    """Raise for a value that is wrong under any vocabulary."""
    problem = value_problem(field, value)
    if problem is not None:
        below, told = problem
        _refuse(field, f"{below}: {told}" if below else told)


def _check_vocabulary(ids: Iterable[int], vocab_size: int, field: str) -> None:
    """Raise if a token id, right in itself, lies outside the vocabulary."""
    for token_id in ids:
        if not TOKEN_ID.low <= int(token_id) < vocab_size:
            of = f"the vocabulary of {vocab_size} tokens"
            _refuse(field, f"token id {shown(token_id)} is not in {of}")


def _check_numbers(params: SamplingParams) -> None:
    """Raise for a scalar out of its range."""
    for value, (field, kind, low, high) in zip(_numbers_of(params), _CLOSED, strict=True):
        if value is None:
            is_fine = field in _OPTIONAL
        else:
            # What nearly every number is; every job has thirteen.
            is_fine = (type(value) is kind or type(value) is int) and low <= value <= high
        if not is_fine:
            told = number_problem(value, NUMBERS[field])
            if told is not None:
                _refuse(field, told)
    for field in _FLAGS:
        if not isinstance(getattr(params, field), bool):
            _check(field, getattr(params, field))
    if params.min_tokens > params.max_tokens:
        _refuse("min_tokens", f"{params.min_tokens} exceeds max_tokens {params.max_tokens}")


def _check_texts(params: SamplingParams) -> None:
    """Raise for stop strings and a grammar that are none, or too many or too long."""
    if params.stop != ():
        _check("stop", params.stop)
    grammar = params.grammar
    if grammar is None:
        return
    is_spec = (
        isinstance(grammar, GrammarSpec)
        and grammar.kind in list(GrammarKind)
        and isinstance(grammar.source, str)
    )
    if not is_spec:
        _refuse("grammar", f"must be a GrammarSpec, got {shown(grammar)}")
    if not 1 <= len(grammar.source) <= MAX_GRAMMAR_LENGTH:
        _check("grammar", {"kind": grammar.kind.value, "source": grammar.source})


def _check_token_rules(params: SamplingParams, vocab_size: int) -> None:
    """Raise for biases and forbidden words that are none, too many, or of no token."""
    if not isinstance(params.logit_bias, Mapping) or params.logit_bias:
        _check("logit_bias", params.logit_bias)
        _check_vocabulary(params.logit_bias, vocab_size, "logit_bias")
    if params.bad_words != ():
        _check("bad_words", params.bad_words)
        for word in params.bad_words:
            _check_vocabulary(word, vocab_size, "bad_words")
    if params.stop_token_ids != ():
        _check("stop_token_ids", params.stop_token_ids)
        _check_vocabulary(params.stop_token_ids, vocab_size, "stop_token_ids")


def validate_sampling(
    params: SamplingParams, vocab_size: int, eos_token_ids: tuple[int, ...] = ()
) -> None:
    """Raise RequestRejected with the field's name if these parameters cannot be carried out."""
    _check_numbers(params)
    _check_texts(params)
    _check_token_rules(params, vocab_size)
    num_stop_ids = len({*params.stop_token_ids, *eos_token_ids})
    if num_stop_ids > MAX_STOP_IDS:
        most = f"at most {MAX_STOP_IDS} ids, those of the model included"
        _refuse("stop_token_ids", f"{most}, got {num_stop_ids}")
