"""Responses over HTTP: in the background, cancelled, chained, bounded, and nobody else's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from gateways.doors import Door, Frame, door, frames_of
from gateways.responses import PATH, body, text_of, told_events
from patience import PATIENCE_S
from workers.null_workers import worker

from tokenbus.producer.gateway.access.caller import Caller
from tokenbus.producer.stored.derived_ids import item_id
from tokenbus.producer.stored.stored_responses import StoredResponses

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.server.embedded import EmbeddedServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALL = {"type": "function_call", "call_id": "c", "name": "track", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c", "output": "x"}
SAID = {"role": "assistant", "content": "Let me look."}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def paced_door(private_server: EmbeddedServer, module_pool: str) -> AsyncIterator[Door]:
    """Run a worker whose tokens come one after the other, and a gateway in front of it."""
    async with (
        worker(module_pool, private_server.url, lease_ttl_s=60, null_tokens_per_s=200),
        door(private_server.url, module_pool) as running,
    ):
        yield running


async def test_background_is_answered_at_once_and_goes_on(paced_door: Door) -> None:
    """It is queued, then there; its stream can be read by who comes later, with its own states."""
    asked = body(background=True, input=[{"role": "user", "content": "x"}], prompt_cache_key="k")
    created = (await paced_door.post(PATH, asked)).json
    assert (created["status"], created["output"]) == ("queued", [])
    told = await paced_door.get(f"{PATH}/{created['id']}?stream=true")
    events = told_events(told)
    names = [event["type"] for event in events[:3]]
    assert names == ["response.created", "response.queued", "response.in_progress"]
    assert events[-1]["response"]["status"] == "incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert (await paced_door.get(f"{PATH}/{created['id']}")).json == events[-1]["response"]


async def test_other_gateway_goes_on_amid_a_stream(
    private_server: EmbeddedServer, module_pool: str, paced_door: Door
) -> None:
    """A reader that lost its gateway has the rest of another, and no frame twice or different."""
    asked = body(stream=True, max_output_tokens=60)
    head: list[Frame] = []
    async with (
        door(private_server.url, module_pool) as other,
        paced_door.open("POST", PATH, asked) as stream,
    ):
        async for frame in frames_of(stream):
            if frame.data:
                head.append(frame)
            if len(head) == 12:
                break
        path = f"{PATH}/{head[0].json['response']['id']}?stream=true"
        rest = await other.get(f"{path}&starting_after={head[-1].id}")
        whole = await other.get(path)
    assert head + rest.data_frames == whole.data_frames
    told_events(whole)


async def test_cancelled_response_keeps_what_was_generated(paced_door: Door) -> None:
    """It tells of its end, to its stream too, and a second cancel changes nothing."""
    asked = body(background=True, max_output_tokens=8000)
    response_id = (await paced_door.post(PATH, asked)).json["id"]
    path = f"{PATH}/{response_id}"
    async with paced_door.open("GET", f"{path}?stream=true") as stream:
        await stream.content.readuntil(b"response.output_text.delta")
        assert (await paced_door.get(path)).json["status"] == "in_progress"
        cancelled = (await paced_door.post(f"{path}/cancel", {})).json
        rest = await stream.read()
    assert cancelled["status"] == "cancelled"
    assert text_of(cancelled["output"][0])
    assert rest.rstrip().endswith(b"}")
    assert b'"status":"cancelled"' in rest
    assert (await paced_door.post(f"{path}/cancel", {})).json == cancelled


async def test_item_of_any_kept_response_may_stand_for_itself(paced_door: Door) -> None:
    """The AI SDK sends ids of what was answered, and no previous response; OpenAI's, no type."""
    question = {"role": "user", "content": "And my lamp?"}
    first = (await paced_door.post(PATH, body())).json
    said = first["output"][0]
    asked = body(input=[{"id": said["id"]}, question])
    second = (await paced_door.post(PATH, asked)).json
    kept = (await paced_door.get(f"{PATH}/{second['id']}/input_items?order=asc")).json["data"]
    assert kept[0] == said
    # The first is found where the last one was told of it.
    await paced_door.ask("DELETE", f"{PATH}/{first['id']}")
    ids = [said["id"], kept[1]["id"], second["output"][0]["id"]]
    references = [{"type": "item_reference", "id": each} for each in ids]
    third = (await paced_door.post(PATH, body(input=[*references, question]))).json
    items = (await paced_door.get(f"{PATH}/{third['id']}/input_items?order=asc")).json["data"]
    assert items[:-1] == [*kept, second["output"][0]]
    lost = await paced_door.post(PATH, body(input=[question, references[0]]))
    assert (lost.status, lost.error["param"]) == (400, "input.1.id")


async def test_item_of_an_unfinished_response_cannot_be_referred_to(paced_door: Door) -> None:
    """What it will be is not known yet."""
    asked = body(background=True, max_output_tokens=8000)
    response_id = (await paced_door.post(PATH, asked)).json["id"]
    reference = {"id": item_id("msg", response_id, 0)}
    told = await paced_door.post(PATH, body(input=[reference]))
    assert (told.status, told.error["param"]) == (400, "input.0.id")
    assert "no answer yet" in told.error["message"]
    await paced_door.post(f"{PATH}/{response_id}/cancel", {})


async def test_deleted_and_foreign_responses_are_unknown(
    private_server: EmbeddedServer, module_pool: str, paced_door: Door
) -> None:
    """No call tells a response of another key from one that never was; nor one that was deleted."""
    keys = ["key-of-one-owner", "key-of-the-other"]
    async with door(
        private_server.url, module_pool, gateway_auth="keys", gateway_api_keys=keys
    ) as two:
        mine = (await two.post(PATH, body(), keys[0])).json["id"]
        never = mine[:-1] + ("0" if mine[-1] != "0" else "1")
        for method, tail in (
            ("GET", ""),
            ("GET", "?stream=true"),
            ("GET", "/input_items"),
            ("POST", "/cancel"),
            ("DELETE", ""),
            ("POST", None),
        ):
            refusals = set()
            for other in (mine, never, "resp_x"):
                asked = body(previous_response_id=other)
                path = PATH if tail is None else f"{PATH}/{other}{tail}"
                told = await two.ask(method, path, asked if tail is None else None, keys[1])
                error = told.error
                told_why = error["message"].replace(other, "")
                refusals.add((told.status, error["code"], error["param"], told_why))
            [(status, *_)] = refusals
            assert status == (400 if tail is None else 404)
        assert (await two.get(f"{PATH}/{mine}", keys[0])).status == 200
        assert (await two.ask("DELETE", f"{PATH}/{mine}", None, keys[0])).json["deleted"]
        assert (await two.get(f"{PATH}/{mine}", keys[0])).status == 404
    unstored = (await paced_door.post(PATH, body(store=False))).json
    assert unstored["store"] is False
    assert (await paced_door.get(f"{PATH}/{unstored['id']}")).status == 404


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "judge", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0"),
        ({"input": ["x"]}, "input.0"),
        ({"input": [{"type": "web_search_call"}]}, "input.0.type"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.id"),
        ({"input": [{"id": "msg_1"}]}, "input.0.id"),
        ({"input": [RESULT]}, "input.0.call_id"),
        ({"input": [CALL, {**RESULT, "output": [{"type": "input_image"}]}]}, "input.1.output.0"),
        ({"input": [SAID, CALL, {**CALL, "arguments": "["}]}, "input.2.arguments"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": 3}, "tool_choice"),
        ({"temperature": -1}, "temperature"),
        ({"max_output_tokens": "x"}, "max_output_tokens"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": 3}, "text"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort"),
        ({"stream": "yes"}, "stream"),
        ({"background": True, "store": False}, "store"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "c"}, "conversation"),
        ({"include": ["file_search_call.result"]}, "include.0"),
        ({"include": [["message.output_text.logprobs"]]}, "include.0"),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 21}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"previous_response_id": 3}, "previous_response_id"),
        ({"callback_url": "http://10.0.0.1:99999/"}, "callback_url"),
    ],
    ids=str,
)
async def test_wrong_field_is_named_as_it_was_sent(
    paced_door: Door, fields: dict[str, Any], param: str
) -> None:
    """400 with the path of the field in the words of this API."""
    told = await paced_door.post(PATH, body(**fields))
    assert (told.status, told.error["param"]) == (400, param), told.text
    assert told.error["type"] == "invalid_request_error"


@pytest.mark.usefixtures("paced_door")
async def test_owner_keeps_so_many_bytes_and_the_oldest_go(
    private_server: EmbeddedServer, module_pool: str
) -> None:
    """Under its bound an owner has the newest; what went is unknown, and its bytes are free."""
    async with door(
        private_server.url, module_pool, gateway_api_keys=["key-of-an-owner"],
        gateway_response_bytes=6000,
    ) as small:  # fmt: skip
        made = [await small.post(PATH, body(), "key-of-an-owner") for _ in range(8)]
        ids = [told.json["id"] for told in made]
        states = [(await small.get(f"{PATH}/{each}", "key-of-an-owner")).status for each in ids]
    assert states == sorted(states, reverse=True)
    assert states[0] == 404
    assert states[-2:] == [200, 200]


async def test_response_that_nobody_reads_is_kept_by_the_control_service(paced_door: Door) -> None:
    """Once its job has ended the result is stored with it, and stays when the job's is gone."""
    created = (await paced_door.post(PATH, body(background=True))).json
    gateway = paced_door.gateway
    assert gateway is not None
    client = (await gateway.models.resolve(None, Caller())).client
    job_id = created["id"].removeprefix("resp_")
    async with asyncio.timeout(PATIENCE_S):
        await client.result(job_id)
    kept = StoredResponses(gateway.redis, ttl_s=60, owner_bytes=10**6)
    assert await kept.store_ended_results(client.scripts) >= 1
    await client.scripts.redis.delete(
        client.scripts.keys.result(job_id), client.scripts.keys.log(job_id)
    )
    told = (await paced_door.get(f"{PATH}/{created['id']}")).json
    assert (told["status"], len(told["output"])) == ("incomplete", 1)
