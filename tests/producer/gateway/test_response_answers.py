"""Answers of responses, with a real model: events are the items, and the same at every time."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from gateways.doors import Door, door
from gateways.responses import PATH, body, joined, text_of, told_events
from models.tiny_model import TinyModel
from workers.null_workers import worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.server.embedded import EmbeddedServer

# A response of a real model is in `test_chats.py` too, beside the worker that it needs.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

TOOL = {
    "type": "function",
    "name": "track",
    "parameters": {
        "type": "object",
        "properties": {"order": {"type": "integer", "minimum": 10, "maximum": 99}},
        "required": ["order"],
        "additionalProperties": False,
    },
}
# The seed and temperature at which the model's random words end within these tokens.
DRAWN = {"seed": 1, "temperature": 1.2, "max_output_tokens": 200}
CALL = DRAWN | {"tools": [TOOL], "tool_choice": {"type": "function", "name": "track"}}
LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
FORMAT = {"type": "json_schema", "name": "order", "schema": TOOL["parameters"], "strict": True}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tiny_door(
    private_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Door]:
    """Run a worker with a tiny model and a gateway in front of it."""
    pool = f"t{uuid.uuid4().hex[:12]}"
    settings: dict[str, Any] = {
        "engine": "paged", "model": str(TinyModel(tmp_path_factory.mktemp("tiny")).folder),
        "dtype": "float32", "device": "cpu", "num_pages": 200, "num_threads": 1, "lease_ttl_s": 60,
    }  # fmt: skip
    async with (
        worker(pool, private_server.url, **settings),
        door(private_server.url, pool) as running,
    ):
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def other_door(private_server: EmbeddedServer, tiny_door: Door) -> AsyncIterator[Door]:
    """Run another gateway of the same pool."""
    assert tiny_door.gateway is not None
    pool = tiny_door.gateway.settings.pool
    async with door(private_server.url, pool) as running:
        yield running


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "message"),
        (CALL, "function_call"),
        (DRAWN | {"text": {"format": FORMAT}}, "message"),
        (CALL | LOGPROBS, "function_call"),
        (DRAWN | LOGPROBS, "message"),
    ],
    ids=["text", "call", "format", "call-logprobs", "logprobs"],
)
async def test_streamed_events_are_the_answer_and_the_replay(
    tiny_door: Door, other_door: Door, fields: dict[str, Any], kind: str
) -> None:
    """Deltas joined are the items; any gateway streams the same from any number, to the byte."""
    streamed = await tiny_door.post(PATH, body(stream=True, **fields))
    events = told_events(streamed)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1]["response"]
    assert events[-1]["type"] == f"response.{last['status']}"
    for item, part in zip(last["output"], joined(events), strict=True):
        assert text_of(item) == part["text"]
        assert item == part["done"]
        assert item["id"] == part["item"]["id"]
    assert last["output"][-1]["type"] == kind
    path = f"{PATH}/{last['id']}"
    assert (await other_door.get(path)).json == last
    for after in (None, 0, len(events) // 2, len(events) - 2, len(events) - 1):
        query = "" if after is None else f"&starting_after={after}"
        again = await other_door.get(f"{path}?stream=true{query}")
        skipped = 0 if after is None else after + 1
        assert again.data_frames == streamed.data_frames[skipped:]


async def test_answer_at_once_is_that_of_the_stream(tiny_door: Door) -> None:
    """The same request has the same output and usage, streamed or not."""
    asked = body(**CALL)
    streamed = told_events(await tiny_door.post(PATH, asked | {"stream": True}))[-1]["response"]
    at_once = (await tiny_door.post(PATH, asked)).json
    calls = [[(c["name"], c["arguments"]) for c in each["output"]] for each in (streamed, at_once)]
    assert calls[0] == calls[1]
    for name in ("status", "usage", "tools", "tool_choice", "text", "max_output_tokens"):
        assert streamed[name] == at_once[name]
    assert at_once["tools"] == [TOOL]
    assert at_once["usage"]["total_tokens"] > 0


async def test_chain_gives_the_model_what_was_said_before(tiny_door: Door) -> None:
    """A response that goes on from another has the prompt of the whole conversation."""
    call = {"type": "function_call", "call_id": "c1", "name": "track", "arguments": '{"order":12}'}
    result = {"type": "function_call_output", "call_id": "c1", "output": "on its way"}
    said = [{"role": "user", "content": "Where is my order?"}, call, result]
    first = (await tiny_door.post(PATH, body() | {"input": said})).json
    [answer] = first["output"]
    asked = body(temperature=0, previous_response_id=first["id"]) | {"input": "And now?"}
    second = (await tiny_door.post(PATH, asked)).json
    assert second["previous_response_id"] == first["id"]
    whole = [*said, answer, {"role": "user", "content": "And now?"}]
    alone = (await tiny_door.post(PATH, body(temperature=0) | {"input": whole})).json
    assert second["usage"]["input_tokens"] == alone["usage"]["input_tokens"]
    assert text_of(second["output"][0]) == text_of(alone["output"][0])
    third = await tiny_door.post(PATH, body(previous_response_id=second["id"]))
    assert third.json["usage"]["input_tokens"] > second["usage"]["input_tokens"]
    listed = (await tiny_door.get(f"{PATH}/{second['id']}/input_items")).json
    assert [item["content"][0]["text"] for item in listed["data"]] == ["And now?"]
