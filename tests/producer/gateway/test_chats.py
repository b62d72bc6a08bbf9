"""Chats over HTTP, with a real model: deltas joined are the answer, whatever was asked for."""

from __future__ import annotations

import itertools
import json
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from gateways import responses
from gateways.doors import Door, Told, door
from models.tiny_model import TinyModel
from workers.null_workers import worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tokenbus.producer.server.embedded import EmbeddedServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "Where is my order?"}]}]
ORDER = {
    "type": "object",
    "properties": {
        "order_id": {"type": "integer", "minimum": 1000, "maximum": 9999},
        "carrier": {"enum": ["north post", "fast parcels"]},
    },
    "required": ["order_id", "carrier"],
    "additionalProperties": False,
}
TOOLS = {
    "tools": [{"type": "function", "function": {"name": "track", "parameters": ORDER}}],
    "tool_choice": {"type": "function", "function": {"name": "track"}},
}


# Of a model that reasons: its answers begin inside the block.
THINKING = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n<think>\n{% endif %}"
)


@asynccontextmanager
async def tiny(url: str, folder: Path, template: str = "") -> AsyncIterator[Door]:
    """Run a worker with a tiny model and a gateway in front of it."""
    pool, model = f"t{uuid.uuid4().hex[:12]}", TinyModel(folder).folder
    if template:
        (model / "chat_template.jinja").write_text(template)
    settings: dict[str, Any] = {
        "engine": "paged", "model": str(model), "dtype": "float32", "device": "cpu",
        "num_pages": 200, "num_threads": 1, "lease_ttl_s": 60, "served_model_name": ["tiny-shop"],
    }  # fmt: skip
    async with worker(pool, url, **settings), door(url, pool) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tiny_door(
    private_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Door]:
    """Give a gateway in front of a tiny model."""
    async with tiny(private_server.url, tmp_path_factory.mktemp("tiny")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def thinking_door(
    private_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Door]:
    """Give a gateway in front of a tiny model that reasons."""
    folder = tmp_path_factory.mktemp("thinking")
    async with tiny(private_server.url, folder, THINKING) as running:
        yield running


def joined(told: Told) -> dict[int, dict[str, Any]]:
    """Join the deltas of a stream by choice, as a client does."""
    messages: dict[int, dict[str, Any]] = {}
    for chunk in told.chunks:
        for choice in chunk["choices"]:
            message = messages.setdefault(
                choice["index"],
                {"content": "", "reasoning": "", "calls": [], "logprobs": [], "reasons": []},
            )
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message["reasoning"] += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls") or []:
                while len(message["calls"]) <= call["index"]:
                    message["calls"].append({"id": "", "name": "", "arguments": ""})
                known = message["calls"][call["index"]]
                known["id"] += call.get("id") or ""
                known["name"] += call["function"].get("name") or ""
                known["arguments"] += call["function"].get("arguments") or ""
            if choice["logprobs"]:
                message["logprobs"] += choice["logprobs"]["content"]
            if choice["finish_reason"]:
                message["reasons"].append(choice["finish_reason"])
            assert not message["reasons"] or message["reasons"][-1] == choice["finish_reason"]
            message.setdefault("role", delta.get("role"))
    return messages


def whole(told: Told) -> dict[int, dict[str, Any]]:
    """Return the messages of an answer at once, in the same form."""
    return {
        choice["index"]: {
            "role": choice["message"]["role"],
            "content": choice["message"]["content"] or "",
            "reasoning": choice["message"].get("reasoning_content", ""),
            "calls": [
                {"id": call["id"], **call["function"]}
                for call in choice["message"].get("tool_calls") or []
            ],
            "logprobs": (choice["logprobs"] or {}).get("content", []),
            "reasons": [choice["finish_reason"]],
        }
        for choice in told.json["choices"]
    }


PARTS: dict[str, dict[str, Any]] = {
    "n": {"n": 2},
    "stop": {"stop": ["a", "on"]},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "tools": TOOLS,
}
COMBINATIONS = [
    names for size in range(len(PARTS) + 1) for names in itertools.combinations(PARTS, size)
]
QUICK = {("n", "stop", "logprobs"), ("n", "logprobs", "tools")}


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(
            names, id="-".join(names) or "plain", marks=[] if names in QUICK else pytest.mark.slow
        )
        for names in COMBINATIONS
    ],
)
async def test_joined_deltas_are_the_answer(tiny_door: Door, names: tuple[str, ...]) -> None:
    """Content, calls, logprobs and reasons of the stream are those of the answer at once."""
    found = await compared(tiny_door, names)
    for message in found.values():
        if "tools" in names and "stop" not in names:
            assert message["calls"][0]["name"] == "track"
        elif "stop" in names and "tools" not in names:
            assert "a" not in message["content"]
            assert "on" not in message["content"]


@pytest.mark.slow
@pytest.mark.parametrize("names", COMBINATIONS, ids=lambda names: "-".join(names) or "plain")
async def test_joined_deltas_of_reasoning_are_the_answer(
    thinking_door: Door, names: tuple[str, ...]
) -> None:
    """Reasoning is told apart from content in both, and its tokens are counted."""
    for message in (await compared(thinking_door, names)).values():
        assert message["reasoning"]


async def compared(running: Door, names: tuple[str, ...]) -> dict[int, dict[str, Any]]:
    """Ask for the same twice, once as a stream, and return the messages.

    A call has the id of its job, so of these the length alone is the same.
    """
    body: dict[str, Any] = {"messages": MESSAGES, "seed": 5, "temperature": 1.2}
    for name in names:
        body |= PARTS[name]
    body["max_tokens"] = 120 if "tools" in names else 40
    at_once = await running.post(PATH, body)
    streamed = await running.post(PATH, body | {"stream": True})
    assert at_once.status == streamed.status == 200, at_once.text or streamed.text
    expected, found = whole(at_once), joined(streamed)
    for messages in (expected, found):
        for message in messages.values():
            for call in message["calls"]:
                call["id"] = len(call["id"])
    # A step of other rows adds up in another order: which rows share it is a matter of time.
    numbers = [[told_numbers(ms[key]) for key in sorted(ms)] for ms in (found, expected)]
    assert found == expected
    assert numbers[0] == [[pytest.approx(each, abs=1e-4) for each in m] for m in numbers[1]]
    assert len(found) == (2 if "n" in names else 1)
    assert all(bool(message["logprobs"]) == ("logprobs" in names) for message in found.values())
    tops = [top for m in found.values() for each in m["logprobs"] for top in each["top_logprobs"]]
    assert not any(top["token"].startswith("token_id:") for top in tops)
    return found


def told_numbers(message: dict[str, Any]) -> list[list[float]]:
    """Take the logprobs out of a message, the token's own and those beside it, and return them."""
    return [
        [entry.pop("logprob"), *(top.pop("logprob") for top in entry["top_logprobs"])]
        for entry in message["logprobs"]
    ]


async def test_call_grows_and_is_whole(tiny_door: Door) -> None:
    """Arguments come in pieces, validate joined, and the choice ends with `tool_calls`."""
    body = {"messages": MESSAGES, "max_tokens": 200, "seed": 1, "temperature": 1.2, **TOOLS}
    body |= {"parallel_tool_calls": False, "stream": True}
    told = await tiny_door.post(PATH, body)
    message = joined(told)[0]
    assert message["reasons"] == ["tool_calls"]
    arguments = json.loads(message["calls"][0]["arguments"])
    assert 1000 <= arguments["order_id"] <= 9999
    pieces = [
        call
        for chunk in told.chunks
        for choice in chunk["choices"]
        for call in choice["delta"].get("tool_calls") or []
    ]
    assert len(pieces) > 3
    assert [bool(piece.get("id")) for piece in pieces] == [True] + [False] * (len(pieces) - 1)


async def test_response_is_what_its_events_say(tiny_door: Door) -> None:
    """A response calls as a chat does; its deltas joined are its items, streamed or read later."""
    tool = {"type": "function", "name": "track", "parameters": ORDER}
    asked = {"tools": [tool], "tool_choice": {"type": "function", "name": "track"}}
    drawn = {"seed": 1, "temperature": 1.2, "max_output_tokens": 200, "stream": True}
    told = await tiny_door.post(responses.PATH, responses.body(**asked, **drawn))
    events = responses.told_events(told)
    last = events[-1]["response"]
    assert last["output"] == [each["done"] for each in responses.joined(events)]
    assert 1000 <= json.loads(responses.joined(events)[-1]["text"])["order_id"] <= 9999
    assert (await tiny_door.get(f"{responses.PATH}/{last['id']}")).json == last


async def test_response_tells_the_logprobs_of_its_text(tiny_door: Door) -> None:
    """Those of its deltas are those of its item, and what a chat tells of the same answer."""
    drawn = {"seed": 1, "temperature": 1.2}
    asked = responses.body(max_output_tokens=30, **drawn)
    asked |= {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    events = responses.told_events(await tiny_door.post(responses.PATH, asked | {"stream": True}))
    name = "response.output_text"
    deltas = [event for event in events if event["type"] == f"{name}.delta"]
    [done] = [event for event in events if event["type"] == f"{name}.done"]
    told = [token for delta in deltas for token in delta["logprobs"]]
    last = events[-1]["response"]
    assert told == done["logprobs"] == last["output"][0]["content"][0]["logprobs"]
    assert "".join(token["token"] for token in told) == done["text"]
    assert len(told) == last["usage"]["output_tokens"] == 30
    assert {len(token["top_logprobs"]) for token in told} == {2}
    assert last["top_logprobs"] == 2
    assert (await tiny_door.get(f"{responses.PATH}/{last['id']}")).json == last
    chat = {"messages": MESSAGES, "max_tokens": 30, "logprobs": True, "top_logprobs": 2, **drawn}
    answer = (await tiny_door.post(PATH, chat)).json
    assert answer["choices"][0]["logprobs"]["content"] == told


async def test_cached_prompts_are_told_and_used_within_a_key(
    private_server: EmbeddedServer, tiny_door: Door
) -> None:
    """A prompt that one key has asked for is computed anew for another, streamed or not."""
    assert tiny_door.gateway is not None
    keys = ["key-of-one-owner", "key-of-the-other"]
    long = [{"role": "user", "content": "Where is my order of yesterday morning? " * 12}]
    body = {"messages": long, "max_tokens": 1, "stream_options": {"include_usage": True}}
    pool = tiny_door.gateway.settings.pool
    async with door(
        private_server.url, pool, gateway_auth="auto", gateway_api_keys=keys
    ) as running:

        async def num_cached(key: str, **fields: Any) -> int:
            told = await running.post(PATH, body | {"stream": True} | fields, key)
            usage = told.chunks[-1]["usage"]
            cached: int = usage["prompt_tokens_details"]["cached_tokens"]
            return cached

        assert await num_cached(keys[0]) == 0
        assert await num_cached(keys[0]) > 0
        assert await num_cached(keys[1]) == 0
        assert await num_cached(keys[1], user="ann") > 0
        assert await num_cached(keys[0], prompt_cache_key="apart") == 0


async def test_format_binds_the_answer(tiny_door: Door) -> None:
    """`response_format` with a schema gives JSON that satisfies it."""
    fmt = {"type": "json_schema", "json_schema": {"name": "order", "schema": ORDER}}
    body = {"messages": MESSAGES, "max_completion_tokens": 200, "seed": 2, "response_format": fmt}
    told = await tiny_door.post(PATH, body)
    content = json.loads(told.json["choices"][0]["message"]["content"])
    assert content["carrier"] in ("north post", "fast parcels")
    bad = {"type": "json_schema", "json_schema": {"schema": {"type": "no such"}}}
    for is_streamed in (False, True):
        refused = await tiny_door.post(PATH, body | {"response_format": bad, "stream": is_streamed})
        assert refused.status == 400, refused.text
        assert refused.error["param"].startswith(("response_format", "grammar"))


async def test_model_is_asked_for_by_its_names(tiny_door: Door) -> None:
    """Every name of the pool's model is listed and answered; the answer tells the name."""
    told = await tiny_door.get("/v1/models")
    names = [model["id"] for model in told.json["data"]]
    assert "tiny-shop" in names
    for name in names:
        body = {"messages": MESSAGES, "max_tokens": 1, "model": name}
        assert (await tiny_door.post(PATH, body)).json["model"] == name


async def test_answer_without_a_length_fits_the_model(tiny_door: Door) -> None:
    """Where a request says no length, it is no longer than the context has room for."""
    told = await tiny_door.post(PATH, {"messages": MESSAGES, "seed": 3, "stop": ["a"]})
    assert told.status == 200


async def test_prompt_is_told_again_where_it_is_asked_for(tiny_door: Door) -> None:
    """`echo` puts it in front of the answer, `prompt_logprobs` tells its tokens as vLLM does."""
    path, prompt = "/v1/completions", "good morning"
    body = {"prompt": prompt, "max_tokens": 3, "temperature": 0, "logprobs": 1}
    plain = (await tiny_door.post(path, body)).json["choices"][0]
    ids = (await tiny_door.post("/tokenize", {"prompt": prompt})).json["tokens"]
    for given in (prompt, ids):
        told = (await tiny_door.post(path, body | {"prompt": given, "echo": True})).json
        choice = told["choices"][0]
        assert choice["text"] == prompt + plain["text"]
        columns = choice["logprobs"]
        assert len(columns["tokens"]) == told["usage"]["total_tokens"] == len(ids) + 3
        assert "".join(columns["tokens"]) == choice["text"]
        assert columns["token_logprobs"][0] is columns["top_logprobs"][0] is None
        assert all(logprob < 0 for logprob in columns["token_logprobs"][1:])
        for name in ("tokens", "token_logprobs", "top_logprobs"):
            assert columns[name][len(ids) :] == plain["logprobs"][name]
        assert all(
            token in top
            for token, top in zip(columns["tokens"][1:], columns["top_logprobs"][1:], strict=True)
        )
    asked = {"prompt": prompt, "max_tokens": 0, "prompt_logprobs": 1}
    entries = (await tiny_door.post(path, asked)).json["choices"][0]["prompt_logprobs"]
    drawn = [entry[str(each)] for entry, each in zip(entries[1:], ids[1:], strict=True)]
    assert entries[0] is None
    assert [each["logprob"] for each in drawn] == columns["token_logprobs"][1 : len(ids)]
    chat = {"messages": MESSAGES, "max_tokens": 1, "prompt_logprobs": 0}
    answer = (await tiny_door.post("/v1/chat/completions", chat)).json
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    for name, value in (("echo", True), ("prompt_logprobs", 1)):
        refused = await tiny_door.post(path, {"prompt": prompt, name: value, "stream": True})
        assert (refused.status, refused.error["param"]) == (400, name)
