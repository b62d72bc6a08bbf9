"""Requests in the forms that Open WebUI sends to a server of OpenAI's API, and what it reads.

Typed from its documentation: the list of models that it polls, a talk with its parameters, and the
tasks that it asks for beside a talk (title, tags, follow-ups, searches, completions of a draft).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from workers.null_workers import expected_text

if TYPE_CHECKING:
    from gateways.doors import Door

pytestmark = pytest.mark.asyncio(loop_scope="module")

# It forwards who talks, where an administrator has turned that on.
FORWARDED = {
    "X_OpenWebUI_User_Name": "Ann%20Smith", "X_OpenWebUI_User_Id": "7d1f", "Accept": "*/*",
    "X_OpenWebUI_User_Email": "ann@example.org", "X_OpenWebUI_User_Role": "user",
    "X_OpenWebUI_Chat_Id": "c0ffee",
}  # fmt: skip
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Are there lamps left?"},
    {"role": "assistant", "content": "Seven."},
    {"role": "user", "content": [{"type": "text", "text": "And bulbs?"}]},
]
# Sliders write whole numbers for floats, and fields that are unset are null or left out.
PARAMS: list[dict[str, Any]] = [
    {},
    {"temperature": 1, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0, "repeat_penalty": 1.1},
    {"stop": ["###", "</s>"], "logit_bias": {"100": -100}, "max_tokens": 6},
    {"reasoning_effort": "medium", "max_tokens": None, "seed": None},
    {"response_format": {"type": "text"}, "num_ctx": 2048, "keep_alive": "5m", "think": False},
]
TASKS = {
    "title": "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat.",
    "tags": "### Task:\nGenerate 1-3 broad tags categorizing the main themes of the chat.",
    "follow_ups": "### Task:\nSuggest 3-5 relevant follow-up questions or prompts.",
    "queries": "### Task:\nAnalyze the chat history to determine the necessity of queries.",
    "autocomplete": "### Task:\nYou are an autocompletion system. Continue the text.",
}


def talk(door: Door, **fields: Any) -> dict[str, Any]:
    """Return the body of a talk."""
    assert door.gateway is not None
    model = door.gateway.settings.pool
    body = {"stream": True, "model": model, "messages": TALK, "max_tokens": 5, "seed": 4}
    return body | {"stream_options": {"include_usage": True}} | fields


@pytest.mark.parametrize("authorization", ["Bearer none", "Bearer ", ""])
async def test_models_are_polled(null_door: Door, authorization: str) -> None:
    """Each entry has what a selection of models needs, with a key or without."""
    headers = FORWARDED | ({"Authorization": authorization} if authorization else {})
    for _ in range(5):
        told = await null_door.get("/v1/models", **headers)
        assert told.status == 200
        assert told.json["object"] == "list"
        assert told.json["data"]
        for model in told.json["data"]:
            assert model["object"] == "model"
            assert model["id"]
            assert isinstance(model["owned_by"], str)
            assert isinstance(model["created"], int)


@pytest.mark.parametrize("params", PARAMS, ids=str)
async def test_talk_streams_to_its_usage(null_door: Door, params: dict[str, Any]) -> None:
    """Deltas, one reason, the usage behind them and `[DONE]`, whatever the parameters are."""
    told = await null_door.post("/v1/chat/completions", talk(null_door, **params), **FORWARDED)
    assert told.status == 200, told.text
    assert told.headers["Content-Type"].startswith("text/event-stream")
    assert told.data_frames[-1].data == "[DONE]"
    *chunks, usage = told.chunks
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] > usage["usage"]["completion_tokens"] > 0
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert [reason for reason in reasons if reason] == ["length"]
    content = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    if params.get("seed", 4) and not params.get("max_tokens"):
        assert "".join(content) == expected_text(4, 5)
    unknown = [name for name in ("num_ctx", "keep_alive") if name in params]
    ignored = told.headers.get("X-Tokenbus-Ignored-Fields", "")
    assert all(name in ignored for name in unknown)


@pytest.mark.parametrize("length", [{"max_completion_tokens": 9}, {"max_tokens": 9}], ids=str)
async def test_tasks_are_answered_beside_a_talk(null_door: Door, length: dict[str, Any]) -> None:
    """None waits for another; each answer is text that the page looks for JSON in."""
    asked = talk(null_door)
    for name in ("stream_options", "max_tokens"):
        del asked[name]
    tasks = [
        asked | {"stream": False, "messages": [{"role": "user", "content": prompt}]} | length
        for prompt in TASKS.values()
    ]
    path = "/v1/chat/completions"
    talking = asyncio.create_task(null_door.post(path, talk(null_door, max_tokens=50)))
    for answer in await asyncio.gather(*(null_door.post(path, task) for task in tasks)):
        assert answer.status == 200, answer.text
        [choice] = answer.json["choices"]
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"] == expected_text(4, 9)
        assert answer.json["usage"]["completion_tokens"] == 9
    assert (await talking).data_frames[-1].data == "[DONE]"


async def test_talk_with_an_unknown_model_or_a_picture_says_so(null_door: Door) -> None:
    """The page shows `error.message`; nothing is streamed."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    seen = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]}]
    for fields, status in (({"model": "gone"}, 404), ({"messages": seen}, 400)):
        told = await null_door.post("/v1/chat/completions", talk(null_door, **fields))
        assert told.status == status
        assert told.error["message"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/audio/speech", "/v1/images/generations"])
async def test_what_is_not_served_is_told_in_the_same_shape(null_door: Door, path: str) -> None:
    """404 with an error, which turns that part of the page off and nothing else."""
    told = await null_door.post(path, {"model": "m", "input": "x"})
    assert (told.status, told.error["code"]) == (404, "unknown_url")
