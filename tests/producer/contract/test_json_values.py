"""Free JSON values of a request: what a template may render, and nothing that cannot be sent."""

from __future__ import annotations

from typing import Any

import pytest

from tokenbus.engine.chat.requests.bounds import MAX_DEPTH
from tokenbus.producer.contract.new_job import as_request
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.errors import RequestInvalid

_USER = {"role": "user", "content": "x"}


def _nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def _build(parameters: Any) -> JobRequest:
    tool = {"function": {"name": "f", "parameters": parameters}}
    return JobRequest.build(messages=[{"role": "user", "content": "x"}], tools=[tool])


def test_values_of_any_allowed_depth_are_sent_and_read_again() -> None:
    """What the door takes, it can write, and a worker can read."""
    values: list[Any] = [{}, _nested(MAX_DEPTH), {"a": [1, 1.5, True, None, "é", {"b": []}]}]
    for value in values:
        request = _build(value)
        assert JobRequest.parse(request.dump()) == request


def _endless() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["a"] = value
    return value


def _laughs() -> dict[str, Any]:
    value: Any = "ha"
    for _ in range(60):
        value = [value, value]
    return {"a": value}


@pytest.mark.parametrize(
    "value",
    [
        _nested(MAX_DEPTH + 1),
        _nested(900),
        _endless(),
        _laughs(),
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": "\ud800"},
        {"\ud800": 1},
        {1: 2},
        {"a": {1, 2}},
        {"a": object()},
        {"a": b"x"},
    ],
    ids=[
        *("deep", "deeper", "endless", "doubling", "nan", "inf", "surrogate", "surrogate-key"),
        *("number-key", "set", "object", "bytes"),
    ],
)
def test_value_that_cannot_be_sent_is_refused_by_its_field(value: Any) -> None:
    """Too deep, endless, doubling or no JSON: the door says so and takes no time over it."""
    with pytest.raises(RequestInvalid, match=r"^tools\.0\.function\.parameters"):
        _build(value)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "\ud800"},
        {"messages": [{"role": "user", "content": "a\udfff"}]},
        {"prompt": "x", "stop": ["\ud800"]},
        {"prompt": "x", "metadata": {"a": "\ud800"}},
        {"prompt": "x", "metadata": {"\ud800": "a"}},
        {"prompt": "x", "idempotency_key": "\ud800"},
        {"prompt": "x", "grammar": {"kind": "regex", "source": "\ud800"}},
        {"prompt": "x", "grammar": {"source": "x", "kind": "\ud800"}},
        {"prompt": "x", "id": "\ud800"},
        {"prompt": "x", "tenant": "\ud800"},
        {"prompt": "x", "cache_group": "\ud800"},
        {"prompt": "x", "cache_group": "g", "cache_secret": "\ud800" * 20},
        {"prompt": "x", "traceparent": "\ud800"},
        {"prompt": "x", "callback_url": "http://shop.example/\ud800"},
        {"prompt": "x", "tool_choice": {"name": "\ud800"}},
        {"token_ids": "\ud800"},
        {"messages": [{"role": "\ud800", "content": "x"}]},
        *(
            {"messages": [{"role": "user", name: "\ud800"}]}
            for name in ("content", "name", "reasoning_content", "tool_call_id")
        ),
        {"messages": [{"role": "user", "tool_calls": [{"id": "\ud800"}]}]},
        {"messages": [_USER], "tools": [{"function": {"name": "\ud800"}}]},
        {"messages": [_USER], "tools": [{"function": {"name": "f", "description": "\ud800"}}]},
        {"messages": [_USER], "tools": [{"function": {"name": "f", "parameters": {"\ud800": 1}}}]},
    ],
    ids=ascii,
)
def test_text_that_utf8_cannot_carry_is_refused_by_its_field(fields: dict[str, Any]) -> None:
    """A lone surrogate is no text; a request that the door takes can always be written."""
    with pytest.raises(RequestInvalid) as refused:
        JobRequest.build(**fields)
    assert refused.value.field.split(".")[0] == list(fields)[-1]
    # The error itself can be printed anywhere.
    assert str(refused.value).encode()


@pytest.mark.parametrize(
    "fields",
    [
        *({"prompt": "x", name: "a\n"} for name in ("id", "tenant", "cache_group")),
        {"messages": [{"role": "user\n", "content": "x"}]},
        {"messages": [_USER], "tools": [{"function": {"name": "f\n"}}]},
    ],
    ids=ascii,
)
def test_name_with_a_line_break_behind_it_is_refused(fields: dict[str, Any]) -> None:
    """A name ends where it says, not a line later; also in a request that was changed after it."""
    with pytest.raises(RequestInvalid):
        JobRequest.build(**fields)
    if "prompt" in fields:
        changed = JobRequest.build(prompt="x").model_copy(update=fields)
        with pytest.raises(RequestInvalid):
            as_request(changed, {})


@pytest.mark.parametrize(
    "change",
    [{"prompt": 7}, {"priority": "high"}, {"max_tokens": -1}, {"prompt": "\ud800"}],
    ids=ascii,
)
def test_request_that_was_changed_unchecked_is_checked_again(change: dict[str, Any]) -> None:
    """`model_copy` and `model_construct` check nothing, so the door does."""
    for request in (
        JobRequest.build(prompt="x").model_copy(update=change),
        JobRequest.model_construct(**({"prompt": "x"} | change)),
    ):
        with pytest.raises(RequestInvalid) as refused:
            as_request(request, {})
        assert refused.value.field == next(iter(change))
