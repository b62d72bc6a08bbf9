"""Descriptions for the OpenAPI page of bodies that are read by hand."""

from __future__ import annotations

from typing import Any

from tokenbus.engine.chat.requests.bounds import (
    MAX_METADATA,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    NUMBERS,
)
from tokenbus.producer.stored.file_record import MAX_LIFE_S, MIN_LIFE_S

_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ERRORS = {
    400: "The request is wrong; `param` names the field.",
    401: "The API key is missing or wrong.",
    403: "The API key may not do this.",
    404: "There is no such thing, or it is not the caller's.",
    408: "The body or the answer took too long.",
    409: "The idempotency key belongs to another request, or the job was cancelled.",
    413: "The body is too large.",
    429: "Too much waits, or a limit of the key is reached; `Retry-After` says when to come.",
    500: "The job or the gateway failed.",
    503: "The queue cannot be reached, or the gateway is closing.",
}
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": told, "content": {"application/json": {"schema": _ERROR_SCHEMA}}}
    for status, told in _ERRORS.items()
}
STREAM_RESPONSES: dict[int | str, dict[str, Any]] = ERROR_RESPONSES | {
    200: {
        "description": "The answer, or its chunks as server-sent events.",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            # Left open: OpenAPI 3.1 describes a stream as one text, some readers each event.
            "text/event-stream": {},
        },
    }
}


def _body(required: list[str], properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "required": required, "properties": properties}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _number(name: str) -> dict[str, Any]:
    """Return the schema of a number of requests, with the bounds that the door holds it to."""
    bound = NUMBERS[name]
    low = "exclusiveMinimum" if bound.is_open else "minimum"
    kind = "integer" if bound.kind is int else "number"
    return {"type": kind, low: bound.low, "maximum": bound.high}


_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH}
_COMMON: dict[str, Any] = {
    "model": {"type": "string"},
    "stop": {"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": MAX_STOPS}]},
    "stream": {"type": "boolean"},
    "stream_options": {
        "type": "object",
        "properties": {
            "include_usage": {"type": "boolean"},
            "continuous_usage_stats": {"type": "boolean"},
        },
    },
    "user": {"type": "string"},
    "metadata": {
        "type": "object",
        "additionalProperties": {"type": "string"},
        "maxProperties": MAX_METADATA,
    },
} | {
    name: _number(name)
    for name in (
        "max_tokens", "temperature", "top_p", "n", "seed", "top_k", "min_p", "min_tokens",
        "repetition_penalty", "presence_penalty", "frequency_penalty",
    )
}  # fmt: skip
_TOKEN_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
CHAT_BODY = _body(
    ["messages"],
    _COMMON
    | {
        "messages": {"type": "array", "minItems": 1, "items": {"type": "object"}},
        "max_completion_tokens": _number("max_tokens"),
        "logprobs": {"type": "boolean"},
        "top_logprobs": _number("logprobs"),
        "tools": {"type": "array", "items": {"type": "object"}},
        "response_format": {"type": "object"},
    },
)
COMPLETION_BODY = _body(
    ["prompt"],
    _COMMON
    | {
        "prompt": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
                _TOKEN_IDS,
                {"type": "array", "items": _TOKEN_IDS},
            ]
        },
        "logprobs": _number("logprobs"),
        "echo": {"type": "boolean"},
    },
)
JOB_BODY = _body(
    [],
    {name: value for name, value in _COMMON.items() if not name.startswith("stream")}
    | {
        "prompt": {"type": "string"},
        "messages": {"type": "array", "minItems": 1, "items": {"type": "object"}},
        "token_ids": _TOKEN_IDS,
        "priority": {"type": "integer", "minimum": 0, "maximum": 2},
        "deadline_s": {"type": "number", "exclusiveMinimum": 0},
        "not_before_s": {"type": "number", "minimum": 0},
        "callback_url": {"type": "string"},
    },
)
RESPONSE_BODY = _body(
    [],
    {
        name: _COMMON[name]
        for name in ("model", "temperature", "top_p", "seed", "stream", "user", "metadata")
    }
    | {
        "input": {
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}],
        },
        "instructions": {"type": "string"},
        "max_output_tokens": _number("max_tokens"),
        "include": {"type": "array", "items": {"type": "string"}},
        "top_logprobs": _number("logprobs"),
        "previous_response_id": {"type": "string"},
        "background": {"type": "boolean"},
        "store": {"type": "boolean"},
        "reasoning": {"type": "object"},
        "text": {"type": "object"},
        "tools": {"type": "array", "items": {"type": "object"}},
        "callback_url": {"type": "string"},
    },
)
BATCH_BODY = _body(
    ["input_file_id", "endpoint", "completion_window"],
    {
        "input_file_id": {"type": "string"},
        "endpoint": {"type": "string"},
        "completion_window": {"type": "string"},
        "metadata": _COMMON["metadata"],
        "output_expires_after": {
            "type": "object",
            "required": ["anchor", "seconds"],
            "properties": {
                "anchor": {"type": "string", "enum": ["created_at"]},
                "seconds": {"type": "integer", "minimum": MIN_LIFE_S, "maximum": MAX_LIFE_S},
            },
        },
        "callback_url": {"type": "string"},
    },
)
UPLOAD_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "purpose"],
                "properties": {
                    "file": {"type": "string", "format": "binary"},
                    "purpose": {"type": "string", "enum": ["batch"]},
                },
            }
        }
    },
}
TOKENIZE_BODY = _body(
    [],
    {
        "model": {"type": "string"},
        "prompt": {"type": "string"},
        "messages": {"type": "array", "minItems": 1, "items": {"type": "object"}},
        "return_token_strs": {"type": "boolean"},
    },
)
DETOKENIZE_BODY = _body(["tokens"], {"model": {"type": "string"}, "tokens": _TOKEN_IDS})
