"""Checks of a request's values, each with the one sentence that both doors say.

Each check returns None for a value that is right, else the path of what is wrong below the field
(empty for the field itself) and the sentence.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from tokenbus.engine.chat.requests.bounds import (
    LOGIT_BIAS,
    MAX_BAD_WORD_LENGTH,
    MAX_BAD_WORDS,
    MAX_GRAMMAR_LENGTH,
    MAX_LOGIT_BIAS,
    MAX_METADATA,
    MAX_MODEL_LENGTH,
    MAX_STOP_IDS,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    NUMBERS,
    PRIORITY,
    REASONING_TOKENS,
    TOKEN_ID,
    Bound,
)
from tokenbus.engine.chat.requests.json_values import check_json

Problem = tuple[str, str] | None


def shown(value: object) -> str:
    """Return a value for a message, short whatever it is."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} inside itself"
    return text if len(text) <= 80 else f"{text[:80]}…"


def number_problem(value: Any, bound: Bound) -> str | None:
    """Say what is wrong with a number: its kind or its size; a bool is no number."""
    kind = type(value)
    # Abstract kinds of numbers take ten times as long to tell, and are asked for what is neither.
    if kind is not int and kind is not bound.kind:
        wanted, what = (Integral, "a whole number") if bound.kind is int else (Real, "a number")
        if kind is bool or not isinstance(value, wanted):
            return f"must be {what}, got {shown(value)}"
    # NaN is in no range.
    if not bound.low <= value <= bound.high or (bound.is_open and value == bound.low):
        low = f"above {bound.low}" if bound.is_open else f"from {bound.low}"
        return f"must be {low} to {bound.high}, got {shown(value)}"
    return None


def value_problem(name: str, value: Any) -> Problem:
    """Say what is wrong with the value of a sampling field; None too for any other field."""
    if name in NUMBERS:
        told = number_problem(value, NUMBERS[name])
        return None if told is None else ("", told)
    check = _CHECKS.get(name)
    return None if check is None else check(value)


def text_problem(value: Any) -> str | None:
    """Say what is wrong with a text that is to travel."""
    if not isinstance(value, str):
        return f"must be text, got {shown(value)}"
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return "holds half a surrogate pair, which UTF-8 does not carry"
    return None


def _prompt(value: Any) -> Problem:
    told = text_problem(value)
    return None if told is None else ("", told)


def _model(value: Any) -> Problem:
    told = text_problem(value)
    if told is None and not 1 <= len(value) <= MAX_MODEL_LENGTH:
        told = f"a name has 1 to {MAX_MODEL_LENGTH} characters, got {shown(value)}"
    return None if told is None else ("", told)


def _priority(value: Any) -> Problem:
    told = number_problem(value, PRIORITY)
    return None if told is None else ("", told)


def _metadata(value: Any) -> Problem:
    if not isinstance(value, dict):
        return "", f"must map texts to texts, got {shown(value)}"
    if len(value) > MAX_METADATA:
        return "", f"at most {MAX_METADATA} texts, got {len(value)}"
    for name, text in value.items():
        told = text_problem(name)
        if told is not None:
            return "", f"a name {told}"
        told = text_problem(text)
        if told is not None:
            return name, told
    return None


def _object(value: Any) -> Problem:
    if not isinstance(value, dict):
        return "", f"must be an object, got {shown(value)}"
    try:
        check_json(value)
    except ValueError as error:
        return "", json_told(error)
    return None


def object_problem(text: str) -> str | None:
    """Return what is wrong with the JSON text of an object; None if nothing is."""
    try:
        read = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        return "is no JSON object"
    try:
        check_json(read)
    except ValueError as error:
        return json_told(error)
    return None


def _no_constant(name: str) -> None:
    """Refuse NaN and the infinities, which Python reads and JSON does not have."""
    raise ValueError(name)


def json_told(error: ValueError) -> str:
    """Return the sentence of what `check_json` has raised."""
    if isinstance(error, UnicodeError):
        return "holds half a surrogate pair, which UTF-8 does not carry"
    return str(error)


def _flag(value: Any) -> Problem:
    return None if isinstance(value, bool) else ("", f"must be true or false, got {shown(value)}")


def _reasoning(value: Any) -> Problem:
    told = number_problem(value, REASONING_TOKENS)
    return None if told is None else ("", told)


def _listed(items: Any, most: int, what: str) -> Problem:
    if not isinstance(items, (list, tuple)):
        return "", f"must be a list of {what}, got {shown(items)}"
    if len(items) > most:
        return "", f"at most {most} {what}, got {len(items)}"
    return None


def _stop(value: Any) -> Problem:
    problem = _listed(value, MAX_STOPS, "texts")
    if problem is not None:
        return problem
    for idx, stop in enumerate(value):
        told = text_problem(stop)
        if told is not None and isinstance(stop, str):
            return str(idx), told
        if not isinstance(stop, str) or not 1 <= len(stop) <= MAX_STOP_LENGTH:
            return str(idx), f"a text has 1 to {MAX_STOP_LENGTH} characters, got {shown(stop)}"
    return None


def _is_token_id(value: Any) -> bool:
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    return is_whole and TOKEN_ID.low <= int(value) <= TOKEN_ID.high


def _token_ids(value: Any, most: int) -> Problem:
    problem = _listed(value, most, "token ids")
    if problem is not None:
        return problem
    for idx, token_id in enumerate(value):
        # Nearly all are plain, and there may be a hundred thousand.
        is_plain = type(token_id) is int and TOKEN_ID.low <= token_id <= TOKEN_ID.high
        if not is_plain and not _is_token_id(token_id):
            return str(idx), f"{shown(token_id)} is no token id"
    return None


def _prompt_ids(value: Any) -> Problem:
    if isinstance(value, (str, array)):
        return None  # packed: whether it is well packed is told where it is unpacked
    problem = _token_ids(value, sys.maxsize)
    if problem is None and not value:
        return "", "the prompt has no token"
    return problem


def _stop_token_ids(value: Any) -> Problem:
    return _token_ids(value, MAX_STOP_IDS)


def _bad_words(value: Any) -> Problem:
    problem = _listed(value, MAX_BAD_WORDS, "lists of token ids")
    if problem is not None:
        return problem
    for idx, word in enumerate(value):
        problem = _token_ids(word, MAX_BAD_WORD_LENGTH)
        if problem is not None:
            below, told = problem
            return f"{idx}.{below}".rstrip("."), told
        if not word:
            return str(idx), f"a list has 1 to {MAX_BAD_WORD_LENGTH} token ids, got none"
    return None


def _logit_bias(value: Any) -> Problem:
    if not isinstance(value, Mapping):
        return "", f"must map token ids to numbers, got {shown(value)}"
    if len(value) > MAX_LOGIT_BIAS:
        return "", f"at most {MAX_LOGIT_BIAS} tokens, got {len(value)}"
    for token_id, bias in value.items():
        if not _is_token_id(token_id):
            return "", f"{shown(token_id)} is no token id"
        told = number_problem(bias, LOGIT_BIAS)
        if told is not None:
            return str(token_id), told
    return None


def _grammar(value: Any) -> Problem:
    """Check our own spelling, `{"kind": …, "source": …}`."""
    if not isinstance(value, Mapping):
        return "", f"must have kind and source, got {shown(value)}"
    for name in value:
        if name not in ("kind", "source"):
            return f"{name}", "is no field of a grammar"
    if value.get("kind") not in ("json_schema", "regex", "choice", "lark"):
        kinds = "json_schema, regex, choice or lark"
        return "kind", f"must be {kinds}, got {shown(value.get('kind'))}"
    source = value.get("source")
    if not isinstance(source, str) or not 1 <= len(source) <= MAX_GRAMMAR_LENGTH:
        got = len(source) if isinstance(source, str) else shown(source)
        return "source", f"a source has 1 to {MAX_GRAMMAR_LENGTH} characters, got {got}"
    told = text_problem(source)
    return None if told is None else ("source", told)


_CHECKS: dict[str, Callable[[Any], Problem]] = {
    "include_stop": _flag,
    "ignore_eos": _flag,
    "parallel_tool_calls": _flag,
    "add_generation_prompt": _flag,
    "continue_final_message": _flag,
    "max_reasoning_tokens": _reasoning,
    "prompt": _prompt,
    "model": _model,
    "priority": _priority,
    "metadata": _metadata,
    "token_ids": _prompt_ids,
    "chat_template_kwargs": _object,
    "stop": _stop,
    "stop_token_ids": _stop_token_ids,
    "bad_words": _bad_words,
    "logit_bias": _logit_bias,
    "grammar": _grammar,
}
CHECKED_FIELDS = frozenset({*NUMBERS, *_CHECKS})
