"""Text completions over HTTP: at once and streamed, and what is refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from workers import stubs
from workers.null_workers import expected_text, until
from yarl import URL

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.contract import deployment_keys
from tokenbus.producer.gateway.jobs import open_streams
from tokenbus.producer.gateway.pools.served_models import ServedModels

if TYPE_CHECKING:
    from gateways.doors import Door, Told

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = "/v1/completions"


def joined(told: Told) -> dict[int, str]:
    """Join the texts of a stream by choice."""
    texts: dict[int, str] = {}
    for chunk in told.chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts


@pytest.mark.parametrize("seed", [7, -1, -(2**63), 2**63 - 1])
async def test_answer_has_the_text_of_the_job(null_door: Door, seed: int) -> None:
    """An answer at once has text, reason and usage in OpenAI's shape, whatever its seed."""
    told = await null_door.post(PATH, {"prompt": "hi", "max_tokens": 5, "seed": seed})
    body = told.json
    assert told.status == 200
    assert body["object"] == "text_completion"
    assert body["id"] == f"cmpl-{told.headers['X-Tokenbus-Job-Id']}"
    [choice] = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == (expected_text(seed, 5), "length")
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (2, 5, 7)


@pytest.mark.parametrize("num_prompts", [1, 3])
@pytest.mark.parametrize("n", [1, 2])
async def test_joined_chunks_are_the_answer(null_door: Door, n: int, num_prompts: int) -> None:
    """Chunks joined are the texts of the unstreamed answer; each choice ends once, at its end."""
    prompt: Any = "hi" if num_prompts == 1 else [f"hi{i}" for i in range(num_prompts)]
    body = {"prompt": prompt, "max_tokens": 6, "seed": 3, "n": n}
    whole = (await null_door.post(PATH, body)).json
    told = await null_door.post(PATH, body | {"stream": True})
    assert joined(told) == {choice["index"]: choice["text"] for choice in whole["choices"]}
    assert set(joined(told)) == set(range(n * num_prompts))
    reasons: dict[int, list[str]] = {}
    for chunk in told.chunks:
        for choice in chunk["choices"]:
            assert not reasons.get(choice["index"]), "a chunk behind the last one of its choice"
            if choice["finish_reason"] is not None:
                reasons.setdefault(choice["index"], []).append(choice["finish_reason"])
    assert reasons == {index: ["length"] for index in range(n * num_prompts)}
    assert [frame.data for frame in told.data_frames].count("[DONE]") == 1
    assert told.data_frames[-1].data == "[DONE]"


async def test_logprobs_of_drawn_tokens_alone_are_told(null_door: Door) -> None:
    """`logprobs: 0` asks for the tokens themselves, in columns; their texts join to the answer."""
    body = {"prompt": "hi", "max_tokens": 3, "seed": 3, "logprobs": 0}
    whole = (await null_door.post(PATH, body)).json["choices"][0]
    assert "".join(whole["logprobs"]["tokens"]) == whole["text"] == expected_text(3, 3)
    told = await null_door.post(PATH, body | {"stream": True})
    parts = [chunk["choices"][0]["logprobs"] for chunk in told.chunks[:-1]]
    for column, values in whole["logprobs"].items():
        assert [value for part in parts for value in part[column]] == values


async def test_usage_is_told_where_it_was_asked_for(null_door: Door) -> None:
    """The usage is a last chunk without choices; chunks before have null; else there is none."""
    body = {"prompt": "hi", "max_tokens": 4, "stream": True}
    plain = await null_door.post(PATH, body)
    assert not any("usage" in chunk for chunk in plain.chunks)
    off = await null_door.post(PATH, body | {"stream_options": {"include_usage": False}})
    assert not any("usage" in chunk for chunk in off.chunks)
    told = await null_door.post(PATH, body | {"stream_options": {"include_usage": True}})
    *chunks, last = told.chunks
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 4 == 6


async def test_continuous_usage_grows_to_the_true_count(null_door: Door) -> None:
    """With every token the count of completion tokens is one higher; the prompt is told at once."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "hi", "max_tokens": 4, "stream": True, "stream_options": options}
    told = await null_door.post(PATH, body)
    counts = [chunk["usage"]["completion_tokens"] for chunk in told.chunks]
    assert counts == [1, 2, 3, 4, 4, 4]
    assert [chunk["usage"]["prompt_tokens"] for chunk in told.chunks] == [2] * 6
    later = await null_door.get(f"/v1/jobs/{told.job_id}/stream")
    assert later.frames == told.frames


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": "yes"}, "stream"),
        ({"echo": True, "stream": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"service_tier": "gold"}, "service_tier"),
        ({"service_tier": {"a": []}}, "service_tier"),
        ({"user": 7}, "user"),
        ({"stream_options": [1]}, "stream_options"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"prompt": [[1, 2], [99_999]]}, "prompt.1"),
        ({"max_completion_tokens": 100_000}, "max_completion_tokens"),
    ],
)
async def test_wrong_field_is_named(null_door: Door, extra: dict[str, Any], param: str) -> None:
    """What is wrong is refused with status 400 and the field as the sender spelled it."""
    for is_streamed in (False, True):
        body = {"prompt": "hi", "max_tokens": 2, "stream": is_streamed} | extra
        if "stream_options" in extra or "max_completion_tokens" in extra:
            body["stream"] = False
        if "max_completion_tokens" in extra:
            del body["max_tokens"]
        told = await null_door.post(PATH, body)
        assert told.status == 400, told.text
        assert told.error["param"] == param
        assert told.error["type"] == "invalid_request_error"


async def test_prompt_beyond_the_context_says_so(null_door: Door) -> None:
    """A prompt that is too long has OpenAI's code, streamed or not."""
    for is_streamed in (False, True):
        body = {"prompt": "x" * 9000, "max_tokens": 5, "stream": is_streamed}
        told = await null_door.post(PATH, body)
        assert (told.status, told.error["code"]) == (400, "context_length_exceeded")
        assert told.error["param"] == "prompt"


async def test_unknown_fields_are_ignored_and_named(null_door: Door) -> None:
    """A field that no request has changes nothing, and a header tells of it."""
    body = {"prompt": "hi", "max_tokens": 1, "tenant": "other", "frobnicate": {"a": 1}}
    told = await null_door.post(PATH, body)
    assert told.status == 200
    assert told.headers["X-Tokenbus-Ignored-Fields"] == "frobnicate, tenant"
    for name in (" ", "", "a ", "\n", "é"):
        told = await null_door.post(PATH, {"prompt": "hi", "max_tokens": 1, name: 1})
        assert (told.status, told.headers["X-Tokenbus-Ignored-Fields"]) == (200, "?")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"),
        (b"[1]", "invalid_json"),
        (b"", "invalid_json"),
        (b"\xff", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"prompt": "\\ud800"}', "invalid_request"),
        (b'{"prompt": "hi", "model": "\\ud800"}', "invalid_request"),
        (b"x" * 9_000_000, "body_too_large"),
    ],
)
async def test_body_that_cannot_be_read_is_refused(null_door: Door, body: bytes, code: str) -> None:
    """Bytes of any kind are refused in OpenAI's shape."""
    told = await null_door.post(PATH, body)
    assert told.status == (413 if code == "body_too_large" else 400)
    assert told.error["code"] == code


async def test_cursor_of_a_new_answer_is_of_something_else(null_door: Door) -> None:
    """A number that a client has left of another server's stream takes nothing from this one."""
    body = {"prompt": "hi", "max_tokens": 4, "seed": 2, "stream": True}
    told = await null_door.post(PATH, body, Last_Event_ID="2")
    assert joined(told) == {0: expected_text(2, 4)}
    again = [
        await null_door.post(PATH, body, Idempotency_Key="once", Last_Event_ID="2")
        for _ in range(2)
    ]
    assert len(again[0].data_frames) == len(again[1].data_frames) + 2


async def test_stream_that_is_not_kept_is_not_begun_anew(null_door: Door) -> None:
    """Who goes on after a frame wants the rest, and pays for no second answer."""
    assert null_door.gateway is not None
    body = {"prompt": "hi", "max_tokens": 4, "stream": True}
    told = await null_door.post(PATH, body)
    last = {"Last_Event_ID": str(told.frames[1].id)}
    await null_door.gateway.redis.delete(deployment_keys.stream_form(told.job_id))
    again = await null_door.post(PATH, body, **last)
    assert (again.status, again.error["code"]) == (404, "not_found")


async def test_form_is_kept_while_its_stream_is_read(
    null_door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that waits or streams for longer than a result is kept is resumed all the same."""
    assert null_door.gateway is not None
    redis: Any = null_door.gateway.redis
    monkeypatch.setattr(open_streams, "_READER_RENEW_S", 0.0)
    body = {"prompt": "hi", "max_tokens": 4, "stream": True, "not_before_s": 3000}
    async with null_door.open("POST", PATH, body) as response:
        job_id = response.headers["X-Tokenbus-Job-Id"]
        form = deployment_keys.stream_form(job_id)
        await redis.pexpire(form, 60_000)

        async def is_renewed() -> bool:
            return int(await redis.pttl(form)) > 60_000

        await stubs.until(is_renewed)
    assert (await null_door.post(f"/v1/jobs/{job_id}/cancel", None)).status == 200


async def test_ticket_and_trace_come_along_on_every_route(
    null_door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused request keeps its place, and its trace, whatever it asks for."""
    seen: list[tuple[int, str]] = []
    submit = AsyncClient.submit

    async def watched(self: AsyncClient, request: Any, **given: Any) -> Any:
        # The place in the trace is a span of the gateway's own where traces are on.
        seen.append((given["ticket"], str(request.traceparent).split("-")[1]))
        return await submit(self, request, **given)

    monkeypatch.setattr(AsyncClient, "submit", watched)
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    for path, body in (
        (PATH, {"prompt": "hi", "max_tokens": 1}),
        ("/v1/jobs", {"prompt": "hi", "max_tokens": 1}),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 1}),
    ):
        told = await null_door.post(path, body, X_Tokenbus_Ticket="7", Traceparent=trace)
        assert told.status < 300, told.text
    assert seen == [(7, "a" * 32)] * 3


async def test_bug_costs_an_answer(
    null_door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named, counted and logged, and nothing of it is told."""

    async def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(ServedModels, "names", fail)
    told = await null_door.get("/v1/models", X_Request_Id="mine-1")
    assert (told.status, told.error["code"]) == (500, "internal_error")
    assert told.headers["X-Request-Id"] == "mine-1"
    assert "secret" not in told.text
    assert "ZeroDivisionError" in caplog.text
    metrics = (await null_door.get("/metrics")).text
    assert 'tokenbus_gateway_requests_total{route="/v1/models",status="500"} 1' in metrics


async def test_idle_connection_outlives_those_of_balancers(null_door: Door) -> None:
    """Who sends over it is the one to close it: a request meets no connection that goes."""
    assert null_door.server is not None
    assert null_door.server.config.timeout_keep_alive > 60


async def test_client_that_hangs_up_amid_its_body_is_no_failure(
    null_door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """It is nobody's fault here, and the log says nothing of it."""
    assert null_door.server is not None
    requests = null_door.server.server_state.tasks
    await until(lambda: not requests)
    _, writer = await asyncio.open_connection("127.0.0.1", URL(null_door.url).port)
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n"
    writer.write(head.encode() + b'{"prompt"')
    await until(lambda: bool(requests))
    writer.close()
    await until(lambda: not requests)
    assert caplog.text == ""


async def test_unknown_model_and_path_are_not_found(null_door: Door) -> None:
    """A model that no pool serves, and a path that is none, say so in OpenAI's shape."""
    told = await null_door.post(PATH, {"prompt": "hi", "model": "gpt-9"})
    assert (told.status, told.error["code"]) == (404, "model_not_found")
    assert told.error["param"] == "model"
    told = await null_door.get("/v2/nothing")
    assert (told.status, told.error["code"]) == (404, "unknown_url")
    told = await null_door.get(PATH)
    assert (told.status, told.error["code"]) == (405, "method_not_allowed")
