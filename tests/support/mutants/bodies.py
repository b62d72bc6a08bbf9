"""Mutated requests: valid ones with fields, types, sizes, nesting or bytes changed, by a seed."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mutants.values import odd

from tokenbus.producer.contract.schema import JobRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

NUM_TOKENS = 4
# Fields that say when or under whose name a job runs, not what it asks of the engine.
_ELSEWHERE = {"v", "id", "not_before_s", "deadline_s", "callback_url", "idempotency_key"}
_FIELDS = [*JobRequest.model_fields, "temprature", "", "__class__"]
_PLAIN: list[dict[str, Any]] = [
    {"prompt": "good morning"},
    {"messages": [{"role": "user", "content": "where is my parcel?"}]},
    {"token_ids": [5, 6, 7, 8]},
    {"prompt": "x", "n": 3, "temperature": 0.7, "seed": 5},
    {"prompt": "x", "logprobs": 3, "prompt_logprobs": 2},
    {"prompt": "x", "logit_bias": {7: 4.0}, "bad_words": [[3, 4]], "min_tokens": 2},
    {"prompt": "x", "grammar": {"kind": "regex", "source": "[a-z]+"}},
    {"prompt": "x", "stop": ["e"], "stop_token_ids": [9], "repetition_penalty": 1.2},
    {"prompt": "x", "presence_penalty": 1.0, "frequency_penalty": -0.5, "top_k": 5, "top_p": 0.9},
]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A request gone wrong: its fields as Python values, and its bytes as a stranger sends them."""

    number: int
    fields: dict[str, Any]
    raw: bytes


def mutants(seed: int, count: int, *, sampling_only: bool = False) -> Iterator[Mutant]:
    """Draw `count` mutants; with `sampling_only` of the fields that the engine reads."""
    rng = random.Random(seed)
    names = [name for name in _FIELDS if not (sampling_only and name in _ELSEWHERE)]
    for number in range(count):
        fields = {"max_tokens": NUM_TOKENS} | rng.choice(_PLAIN)
        for name in rng.sample(names, rng.choice((1, 1, 1, 2, 3))):
            fields[name] = odd(rng, name)
        yield Mutant(number, fields, _bytes(rng, fields))


def _bytes(rng: random.Random, fields: dict[str, Any]) -> bytes:
    """Write fields as JSON, every fourth body with bytes changed."""
    # Surrogates stay escaped; NaN and Infinity are written as JavaScript does.
    try:
        body = json.dumps({"v": 1} | fields, default=str).encode()
    except (RecursionError, ValueError):
        body = b'{"v":1,"prompt":' + b"[" * 3000
    return spoilt(rng, body)


def spoilt(rng: random.Random, body: bytes) -> bytes:
    """Change the bytes of every fourth body, an object of JSON."""
    kind = rng.randrange(32)
    if kind == 0:
        return body[: rng.randrange(len(body))]
    if kind == 1:
        place = rng.randrange(len(body))
        return body[:place] + bytes([rng.randrange(256)]) + body[place + 1 :]
    if kind == 2:
        return body[:-1] + b',"max_tokens":3,"max_tokens":"many"}'
    if kind == 3:
        return body + rng.choice((b"}", b"\x00", b"{}", b"\xff\xfe", b"," * 1000))
    if kind == 4:
        return b"\xef\xbb\xbf" + body
    if kind == 5:
        return body[:-1] + b',"seed":' + rng.choice((b"1e400", b"-0", b"0x10", b"9" * 5000)) + b"}"
    if kind == 6:
        return body[:-1] + b',"metadata":{"a":"' + b"x" * rng.choice((10_000, 2_000_000)) + b'"}}'
    if kind == 7:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(200)))
    return body
