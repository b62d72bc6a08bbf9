"""Sampling fields as OpenAI and vLLM write them: stop, logprobs, logit_bias and top_k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.requests.shape_error import ShapeInvalid
from tokenbus.engine.chat.requests.value_checks import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

# Digits of the largest token id.
_MAX_DIGITS = 10


def shape_sampling(fields: Mapping[str, Any], own: dict[str, Any], names: dict[str, str]) -> None:
    """Bring the sampling fields of a request to one spelling, in place.

    `fields` are those that were given, `names` the other names under which fields of `own` came.
    Raises: ShapeInvalid.
    """
    if isinstance(own.get("stop"), str):
        own["stop"] = [own["stop"]]
    for name in ("stop", "stop_token_ids", "bad_words"):
        if isinstance(own.get(name), tuple):
            own[name] = list(own[name])
    if isinstance(own.get("bad_words"), list):
        words = own["bad_words"]
        own["bad_words"] = [list(word) if isinstance(word, tuple) else word for word in words]
    _shape_logprobs(fields, own, names)
    if type(own.get("top_k")) is int and own["top_k"] == -1:
        own["top_k"] = 0
    biases = own.get("logit_bias")
    if isinstance(biases, Mapping):
        own["logit_bias"] = dict(_whole_keys(biases))


def _shape_logprobs(fields: Mapping[str, Any], own: dict[str, Any], names: dict[str, str]) -> None:
    num_top = fields.get("top_logprobs")
    logprobs = own.get("logprobs")
    if logprobs is True:
        own["logprobs"] = 0 if num_top is None else num_top
        names["logprobs"] = "top_logprobs"
    elif logprobs is False or logprobs is None:
        own.pop("logprobs", None)
        if num_top:
            raise ShapeInvalid("top_logprobs", "only together with logprobs: true")
    elif num_top is not None and num_top != logprobs:
        told = f"{shown(num_top)} differs from logprobs {shown(logprobs)}"
        raise ShapeInvalid("top_logprobs", told)


def _whole_keys(biases: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield biases by token id, which JSON writes as text."""
    for token_id, bias in biases.items():
        if isinstance(token_id, str) and token_id.isascii() and token_id.isdecimal():
            if len(token_id) > _MAX_DIGITS:
                raise ShapeInvalid(f"logit_bias.{token_id[:20]}", "is no token id")
            yield int(token_id), bias
        else:
            yield token_id, bias
