"""Mutated requests over HTTP: for every route of a gateway, valid ones gone wrong, by a seed."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mutants.bodies import spoilt
from mutants.values import TEXTS, anything, odd

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NUM_TOKENS = 4
_TOOL = {"type": "function", "function": {"name": "track", "parameters": {"type": "object"}}}
_USER = {"role": "user", "content": "where is my parcel?"}
_PARTS = {"role": "user", "content": [{"type": "text", "text": "where is it?"}]}
_SAMPLED = {"temperature": 0.7, "top_p": 0.9, "seed": 5, "stop": ["e"], "n": 2}
_PAGE = {"id": "chat", "messages": [{"role": "user", "parts": [{"type": "text", "text": "hi"}]}]}
_ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
    {"type": "function_call", "call_id": "c", "name": "track", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "on its way"},
]
_LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
_FLAT_TOOL = {"type": "function", "name": "track", "parameters": {"type": "object"}}
# Valid bodies of each route that takes one.
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": [_USER]},
        {"messages": [_USER], **_SAMPLED, "logprobs": True, "top_logprobs": 2},
        {"messages": [_PARTS], "stream": True, "stream_options": {"include_usage": True}},
        {"messages": [_USER], "tools": [_TOOL], "tool_choice": "auto", "service_tier": "flex"},
        {"messages": [_USER], "response_format": {"type": "json_object"}, "user": "ann"},
        {"messages": [_USER], "metadata": {"shop": "7"}, "priority": 2, "logit_bias": {"7": 1}},
    ],
    "/v1/completions": [
        {"prompt": "good morning"},
        {"prompt": ["a", "b"], **_SAMPLED, "logprobs": 2},
        {"prompt": [5, 6, 7], "stream": True},
        {"prompt": [[5, 6], [7]], "echo": True, "suffix": "x", "prompt_cache_key": "k"},
    ],
    "/v1/responses": [
        {"input": "hi"},
        {"input": _ITEMS, "instructions": "Be short.", "stream": True, **_LOGPROBS},
        {"input": "hi", "tools": [_FLAT_TOOL], "background": True, "metadata": {"a": "b"}},
        {"input": "hi", "text": {"format": {"type": "text"}}, "reasoning": {"effort": "low"}},
    ],
    "/v1/jobs": [{"prompt": "x"}, {"messages": [_USER]}, {"token_ids": [5, 6], "n": 2}],
    "/v1/batches": [
        {"input_file_id": "file-0", "endpoint": "/v1/completions", "completion_window": "24h"}
    ],
    "/tokenize": [{"prompt": "hi"}, {"messages": [_USER], "return_token_strs": True}],
    "/detokenize": [{"tokens": [5, 6, 7]}],
    "/api/chat": [_PAGE, _PAGE | {"system": "Be short.", "tools": [_TOOL]}],
}
_LENGTHS = {
    "/v1/responses": "max_output_tokens", "/tokenize": "", "/detokenize": "", "/v1/batches": "",
}  # fmt: skip
# Routes that name something, with what else they take.
NAMED = (
    *("GET /v1/models/{}", "GET /v1/jobs/{}", "GET /v1/jobs/{}/stream", "DELETE /v1/jobs/{}"),
    *("POST /v1/jobs/{}/cancel", "GET /v1/responses/{}", "DELETE /v1/responses/{}"),
    *("POST /v1/responses/{}/cancel", "GET /v1/responses/{}/input_items", "GET /v1/files/{}"),
    *("GET /v1/files/{}/content", "DELETE /v1/files/{}", "GET /v1/batches/{}"),
    *("POST /v1/batches/{}/cancel", "GET /api/chat/{}/stream", "POST /api/chat/{}/stop"),
    *("GET /v1/models", "GET /v1/jobs", "GET /v1/files", "GET /v1/batches", "GET /healthz"),
)
_QUERIES = ("after", "limit", "order", "starting_after", "stream", "purpose", "model", "x")
_HEADERS = (
    *("Last-Event-ID", "Idempotency-Key", "X-Request-Id", "traceparent", "X-Tokenbus-Ticket"),
    *("Content-Type", "Accept", "Authorization", "Accept-Encoding"),
)


@dataclass(frozen=True, slots=True)
class HttpMutant:
    """A request gone wrong, as a stranger sends it; `url` begins behind the host."""

    number: int
    method: str
    url: str
    body: bytes | None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return it on one line, for whoever has to send it again."""
        return f"{self.number}: {self.method} {self.url} {self.headers} {self.body!r:.2000}"


def http_mutants(
    seed: int, count: int, ids: Mapping[str, str] | None = None
) -> Iterator[HttpMutant]:
    """Draw `count` mutants; `ids` are those of things that are there, by the part of the path."""
    rng = random.Random(seed)
    for number in range(count):
        if rng.random() < 0.25:
            yield _named(rng, number, ids or {})
        else:
            yield _posted(rng, number)


def _posted(rng: random.Random, number: int) -> HttpMutant:
    path = rng.choice(list(BODIES))
    body = copy.deepcopy(rng.choice(BODIES[path]))
    length = _LENGTHS.get(path, "max_tokens")
    if length:
        body[length] = NUM_TOKENS
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if rng.random() < 0.6:
            name = rng.choice((*body, *_OTHERS))
            body[name] = odd(rng, name)
        else:
            _change(rng, body)
    raw = spoilt(rng, _dumped(body))
    return HttpMutant(number, "POST", path, raw, _headers(rng))


_OTHERS = (
    *("model", "stream", "stream_options", "n", "temperature", "top_p", "max_tokens", "stop"),
    *("logprobs", "top_logprobs", "tools", "tool_choice", "response_format", "seed", "user"),
    *("metadata", "extra_body", "priority", "service_tier", "deadline_s", "prompt", "messages"),
    *("input", "include", "previous_response_id", "reasoning", "text", "store", "background"),
    *("max_completion_tokens", "min_p", "top_k", "logit_bias", "bad_words", "grammar", "id"),
    *("prompt_cache_key", "callback_url", "idempotency_key", "tenant", "cache_secret", "echo"),
    *("chat_template_kwargs", "presence_penalty", "repetition_penalty", "instructions", ""),
)


def _change(rng: random.Random, body: dict[str, Any]) -> None:
    """Change a value anywhere in a body."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            places.append((value, key))
            if isinstance(inner, dict | list):
                walk(inner)

    walk(body)
    if not places:
        return
    holder, key = rng.choice(places)
    kind = rng.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = holder.pop(key)
    elif kind == 2:
        holder[key] = [holder[key]] * rng.choice((0, 1, 2, 200))
    else:
        holder[key] = anything(rng)


def _dumped(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body, default=str).encode()
    except (RecursionError, ValueError, TypeError):
        return b'{"messages":' + b"[" * 3000


def _named(rng: random.Random, number: int, ids: Mapping[str, str]) -> HttpMutant:
    method, path = rng.choice(NAMED).split()
    known = [value for part, value in ids.items() if f"/{part}/" in path]
    given = rng.choice(known) if known and rng.random() < 0.4 else rng.choice((*TEXTS, "..", "a/b"))
    if rng.random() < 0.2:
        given = given[: rng.randrange(len(given) + 1)] + rng.choice(("", "0", "%", "~", "."))
    url = path.format(quote(given[:2000].encode("utf-8", "surrogatepass"), safe=""))
    if rng.random() < 0.5:
        values = [(rng.choice(_QUERIES), _query(rng)) for _ in range(rng.choice((1, 1, 2)))]
        url += "?" + "&".join(f"{name}={value}" for name, value in values)
    if rng.random() < 0.05:
        method = rng.choice(("PUT", "PATCH", "OPTIONS", "HEAD", "DELETE", "POST", "TRACE"))
    body = _dumped({"activeStreamId": anything(rng)}) if method == "POST" else None
    return HttpMutant(number, method, url, body, _headers(rng))


def _query(rng: random.Random) -> str:
    values = ("-1", "0", "1", "9" * 30, "true", "asc", "1e3", "%00", "%ff", "", "null", "a,b", "5")
    return rng.choice(values)


def _headers(rng: random.Random) -> dict[str, str]:
    """Return headers, most of the time none but the type."""
    headers = {"Content-Type": "application/json"}
    if rng.random() < 0.2:
        values = (
            "",
            "x",
            "a:1",
            "chatcmpl-x:5",
            "1" * 300,
            "é",
            "s0-abc:1,2",
            "00-0-0-0",
            "Bearer",
        )
        headers[rng.choice(_HEADERS)] = rng.choice(values)
    return headers
