"""Bodies of `/v1/chat/completions` and `/v1/completions`: what they ask of the job and the door.

Fields of the job are left as they are spelled: `engine/chat/requests` brings those of every request
to one spelling. Unknown fields are ignored and named, or refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tokenbus.engine.chat.requests.request_shapes import FOREIGN_FIELDS, REQUEST_FIELDS
from tokenbus.producer.gateway.wire.api_error import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What the door says itself, or does not let a caller say, of a job.
_OF_DOOR = frozenset(
    {"v", "id", "tenant", "cache_group", "cache_secret", "traceparent", "callback_url"}
)
# Fields that are read here and not passed on.
_READ = frozenset(
    {
        "model", "stream", "stream_options", "user", "safety_identifier", "service_tier",
        "prompt_cache_key", "priority", "idempotency_key", "store", "extra_body",
    }
)  # fmt: skip
_KNOWN = (REQUEST_FIELDS | FOREIGN_FIELDS) - _OF_DOOR
_INPUTS = frozenset({"messages", "prompt", "token_ids"})
_TIERS = {"auto": 1, "default": 1, "priority": 0, "fast": 0, "flex": 2, "batch": 2, "scale": 1}
# What a tier is called in the answer, by the priority that the job had.
_TOLD_TIERS = {0: "priority", 1: "default", 2: "flex"}
_STREAM_OPTIONS = frozenset({"include_usage", "continuous_usage_stats", "include_obfuscation"})


@dataclass(slots=True)
class GenerationAsked:
    """A body, taken apart.

    fields: of the job.
    names: fields as they were spelled, by the names that errors have for them.
    ignored: names of fields that no request has.
    tier: as the answer tells it; empty where none was asked for.
    is_repeated: the prompt is told again before the answer.
    with_prompt_logprobs: the logprobs of the prompt are told beside it.
    default_tokens: the longest answer, where the body says nothing and the model has room for it.
    """

    fields: dict[str, Any]
    model: str | None = None
    is_streamed: bool = False
    with_usage: bool = False
    with_continuous_usage: bool = False
    user: str | None = None
    tier: str = ""
    cache_key: str | None = None
    idempotency_key: str | None = None
    is_repeated: bool = False
    with_prompt_logprobs: bool = False
    default_tokens: int | None = None
    names: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)

    @property
    def with_logprobs(self) -> bool:
        """Tell whether the logprobs of tokens are asked for, if only of those that were drawn."""
        given = self.fields.get("logprobs")
        return given is not None and given is not False


def asked_of(
    body: Mapping[str, Any],
    priorities: Sequence[int],
    *,
    takes: Literal["messages", "prompt"],
    is_strict: bool = False,
) -> GenerationAsked:
    """Take a body apart.

    Args:
        priorities: those that the caller may ask for, the first being its default.
        takes: the input of the route.
    Raises: ApiError 400 with the field, 403 for a priority that the caller may not have.
    """
    merged = _merged(body)
    known = _KNOWN - (_INPUTS - {takes})
    ignored = sorted(name for name in merged if name not in known)
    if ignored and is_strict:
        raise _invalid(ignored[0], "is no field of this request")
    asked = GenerationAsked(
        {name: value for name, value in merged.items() if name in known - _READ}, ignored=ignored
    )
    if merged.get(takes) is None:
        raise _invalid(takes, "is missing")
    asked.with_prompt_logprobs = "prompt_logprobs" in merged
    asked.model = _text(merged, "model")
    asked.is_streamed = _flag(merged, "stream")
    _read_stream_options(merged, asked)
    asked.user = _text(merged, "safety_identifier") or _text(merged, "user")
    asked.cache_key = _text(merged, "prompt_cache_key") or None
    asked.idempotency_key = _text(merged, "idempotency_key")
    _read_priority(merged, priorities, asked)
    return asked


def job_asked_of(
    body: Mapping[str, Any], priorities: Sequence[int], *, is_strict: bool = False
) -> GenerationAsked:
    """Take the body of a job apart, which has any one input. Raises: as `asked_of`."""
    merged = _merged(body)
    known = (_KNOWN | {"callback_url"}) - {"stream", "stream_options"}
    ignored = sorted(name for name in merged if name not in known)
    if ignored and is_strict:
        raise _invalid(ignored[0], "is no field of this request")
    asked = GenerationAsked(
        {name: value for name, value in merged.items() if name in known - _READ}, ignored=ignored
    )
    asked.model = _text(merged, "model")
    asked.user = _text(merged, "safety_identifier") or _text(merged, "user")
    asked.cache_key = _text(merged, "prompt_cache_key") or None
    asked.idempotency_key = _text(merged, "idempotency_key")
    _read_priority(merged, priorities, asked)
    return asked


def _merged(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a body, those of its `extra_body` among them."""
    inner = body.get("extra_body")
    if inner is None:
        return {name: value for name, value in body.items() if value is not None}
    if not isinstance(inner, dict):
        raise _invalid("extra_body", "must be an object of fields")
    if inner.get("extra_body") is not None:
        raise _invalid("extra_body.extra_body", "stands inside itself")
    both = {**body, **inner}
    return {
        name: value for name, value in both.items() if value is not None and name != "extra_body"
    }


def _read_stream_options(merged: Mapping[str, Any], asked: GenerationAsked) -> None:
    options = merged.get("stream_options")
    if options is None:
        return
    if not isinstance(options, dict):
        raise _invalid("stream_options", "must be an object")
    if not asked.is_streamed:
        raise _invalid("stream_options", "only together with stream: true")
    unknown = sorted(set(options) - _STREAM_OPTIONS)
    if unknown:
        asked.ignored.append(f"stream_options.{unknown[0]}")
    for name in _STREAM_OPTIONS:
        _flag(options, name, "stream_options.")
    asked.with_usage = options.get("include_usage") is True
    asked.with_continuous_usage = asked.with_usage and options.get("continuous_usage_stats") is True


def _read_priority(
    merged: Mapping[str, Any], priorities: Sequence[int], asked: GenerationAsked
) -> None:
    """Find the priority: as it is given, else that of the tier, else the caller's first.

    A tier that the caller may not have becomes the one that it may, as OpenAI does it.
    """
    tier, given = merged.get("service_tier"), merged.get("priority")
    if tier is not None and (not isinstance(tier, str) or tier not in _TIERS):
        raise _invalid("service_tier", f"must be one of {', '.join(sorted(_TIERS))}")
    if given is not None:
        if type(given) is not int or given not in _TOLD_TIERS:
            raise _invalid("priority", "must be 0, 1 or 2")
        if given not in priorities:
            told = f"The API key may not ask for the priority {given}."
            raise ApiError(403, told, code="priority_not_allowed", param="priority")
    wanted = _TIERS[tier] if given is None and tier is not None else given
    if wanted is None or wanted not in priorities:
        wanted = priorities[0]
    asked.fields["priority"] = wanted
    if tier is not None:
        asked.tier = _TOLD_TIERS[wanted]


def _flag(given: Mapping[str, Any], name: str, path: str = "") -> bool:
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise _invalid(path + name, "must be true or false")
    return value is True


def _text(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise _invalid(name, "must be text")
    if value is not None and any("\ud800" <= each <= "\udfff" for each in value):
        raise _invalid(name, "holds half a surrogate pair, which UTF-8 does not carry")
    return value


def _invalid(name: str, told: str) -> ApiError:
    return ApiError(400, f"{name}: {told}", code="invalid_request", param=name)
