"""Two keys of one tenant: what one has is to the other as what never was, at every route."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from gateways.doors import Door, Told, door, forget_deployment
from gateways.uploads import upload
from redis.asyncio.client import Pipeline, Redis
from workers.batches import completion_line
from workers.null_workers import worker
from workers.stubs import until

from tokenbus.producer.gateway.access import key_ring
from tokenbus.producer.gateway.access.api_keys import ApiKeys
from tokenbus.producer.gateway.access.caller import Caller
from tokenbus.producer.gateway.door_guard import DoorGuard
from tokenbus.producer.stored.derived_ids import item_id
from tokenbus.worker.control.service import batch_service
from tokenbus.worker.control.settings import ControlSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.server.embedded import EmbeddedServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

METHODS = ("get", "post", "delete")
# Names of models are common to all keys that may ask for them.
COMMON = {"model"}
CHAT = "my talk"


@dataclass(slots=True)
class Two:
    """A door with the keys of two, and what the first one has, by the parameters of paths."""

    door: Door
    mine: str
    other: str
    ids: dict[str, str]
    never: dict[str, str]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(
    private_server: EmbeddedServer, module_pool: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Two]:
    """Give the first key one of everything."""
    url, folder = private_server.url, str(tmp_path_factory.mktemp("files"))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(worker(module_pool, url, lease_ttl_s=60))
        made = door(url, module_pool, files_url=folder, gateway_auth="keys")
        running = await stack.enter_async_context(made)
        assert running.gateway is not None
        keys = ApiKeys(running.gateway.redis)
        mine, other = [(await keys.create(tenant="shop"))[0] for _ in range(2)]
        client = (await running.gateway.models.resolve(None, Caller())).client
        settings = ControlSettings.load(pool=module_pool)
        task = asyncio.create_task(batch_service(client, folder, settings).run())
        yield await made_two(running, mine, other, module_pool)
        task.cancel()
        await asyncio.wait([task])
        await forget_deployment(running.gateway.redis)


async def made_two(running: Door, mine: str, other: str, pool: str) -> Two:
    """Make the things of the first key, and ids of the same form that nothing has."""
    waits = {"prompt": "x", "max_tokens": 3, "not_before_s": 3000}
    job = (await running.post("/v1/jobs", waits, mine)).json
    response = (
        await running.post("/v1/responses", {"input": "x", "max_output_tokens": 3}, mine)
    ).json
    line = json.dumps(completion_line(1, model=pool)).encode()
    _, file = await upload(running, line, mine)
    asked = {"input_file_id": file["id"], "endpoint": "/v1/completions"}
    batch = (await running.post("/v1/batches", asked | {"completion_window": "24h"}, mine)).json
    said = [{"role": "user", "parts": [{"type": "text", "text": "x"}]}]
    talk = {"id": CHAT, "messages": said, "max_tokens": 3, "not_before_s": 3000}
    asking = asyncio.create_task(running.post("/api/chat", talk, mine))
    path = f"/v1/batches/{batch['id']}"

    async def is_ready() -> bool:
        listed = (await running.get("/v1/jobs", mine)).json["data"]
        return len(listed) == 2 and (await running.get(path, mine)).json["status"] == "completed"

    await until(is_ready)
    asking.cancel()
    ids = {
        "job_id": job["id"], "response_id": response["id"], "file_id": file["id"],
        "batch_id": batch["id"], "chat_id": CHAT,
    }  # fmt: skip
    never = {name: each[:-4] + "0000" for name, each in ids.items()}
    return Two(running, mine, other, ids, never)


async def routes_with_ids(running: Door) -> list[tuple[str, str, str]]:
    """Return method, path and parameter of every route that names something, as described."""
    page = (await running.get("/openapi.json")).json
    found = []
    for path, operations in page["paths"].items():
        for method in METHODS:
            names = {
                each["name"]
                for each in operations.get(method, {}).get("parameters", ())
                if each["in"] == "path"
            }
            found += [(method.upper(), path, name) for name in names - COMMON]
    return found


def told_of(answer: Told, thing: str) -> tuple[Any, ...]:
    """Return all that an answer tells, without the id that was asked for."""
    headers = {name.lower() for name in answer.headers}
    frames = [frame.data.replace(thing, "ID") for frame in answer.frames]
    return answer.status, answer.text.replace(thing, "ID"), headers, frames


async def test_what_is_anothers_is_as_what_never_was(two: Two) -> None:
    """The same status, words and headers, by every method of every route; and nothing is done."""
    routes = await routes_with_ids(two.door)
    assert {name for _, _, name in routes} == set(two.ids)
    for method, path, name in routes:
        thing, never = two.ids[name], two.never[name]
        for tail in ("", "?stream=true", "?after=0"):
            seen = await two.door.ask(method, path.format(**two.ids) + tail, None, two.other)
            unknown = await two.door.ask(method, path.format(**two.never) + tail, None, two.other)
            assert told_of(seen, thing) == told_of(unknown, never), (method, path)
            assert seen.status in (200, 204, 404)
            if "/api/chat/" not in path:
                assert seen.status == 404
    for path in ("/v1/jobs", "/v1/files", "/v1/batches"):
        assert (await two.door.get(path, two.other)).json["data"] == []
    assert len((await two.door.get("/v1/jobs", two.mine)).json["data"]) == 2
    for part in ("file", "response", "batch"):
        path = f"/v1/{part}s".replace("batchs", "batches") + f"/{two.ids[f'{part}_id']}"
        assert (await two.door.get(path, two.mine)).status == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/responses", {"input": "x", "previous_response_id": "{response_id}"}, "previous"),
        (
            "/v1/batches",
            {
                "input_file_id": "{file_id}",
                "endpoint": "/v1/completions",
                "completion_window": "24h",
            },
            "input_file_id",
        ),
        (
            "/v1/responses",
            {"input": [{"type": "item_reference", "id": "{item_id}"}]},
            "input.0.id",
        ),
    ],
    ids=["chain", "batch", "item"],
)
async def test_bodies_name_nothing_of_another(
    two: Two, path: str, body: dict[str, Any], param: str
) -> None:
    """A field that names what is another's is refused as one that names nothing."""
    told = []
    for known in (two.ids, two.never):
        ids = known | {"item_id": item_id("msg", known["response_id"], 0)}
        text = json.dumps(body)
        for name, each in ids.items():
            text = text.replace(f"{{{name}}}", each)
        answer = await two.door.post(path, json.loads(text), two.other)
        [thing] = [each for each in ids.values() if each in text]
        told.append(told_of(answer, thing))
        assert answer.status == 400
        assert answer.error["param"].startswith(param)
    assert told[0] == told[1]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give what the last request has asked of the server, a line for each round trip."""
    made: list[str] = []
    of_request: ContextVar[bool] = ContextVar("of_request", default=False)
    guard, flush = DoorGuard.__call__, Pipeline.execute
    execute: Any = Redis.execute_command

    async def called(self: Any, scope: Any, receive: Any, send: Any) -> None:
        of_request.set(True)
        made.clear()
        await guard(self, scope, receive, send)

    async def executed(self: Any, *args: Any, **options: Any) -> Any:
        if of_request.get():
            made.append(str(args[0]))
        return await execute(self, *args, **options)

    async def flushed(self: Any, *args: Any, **options: Any) -> Any:
        if of_request.get():
            made.append(" ".join(str(command[0][0]) for command in self.command_stack))
        return await flush(self, *args, **options)

    # The key is looked up once, and not now and then.
    monkeypatch.setattr(key_ring, "BELIEVED_S", float("inf"))
    monkeypatch.setattr(DoorGuard, "__call__", called)
    monkeypatch.setattr(Redis, "execute_command", executed)
    monkeypatch.setattr(Pipeline, "execute", flushed)
    return made


async def test_anothers_takes_what_takes_what_never_was(two: Two, calls: list[str]) -> None:
    """The same calls on the server are made for both, so that no time tells them apart."""
    # What a key's first request looks up is believed from then on.
    await two.door.get("/v1/models", two.other)
    num_calls = 0
    for method, path, _ in await routes_with_ids(two.door):
        told = []
        for ids in (two.ids, two.never):
            await two.door.ask(method, path.format(**ids), None, two.other)
            told.append(list(calls))
        num_calls += len(told[0])
        assert told[0] == told[1], (method, path)
    assert num_calls > 0


async def test_same_chat_id_is_another_chat(two: Two) -> None:
    """Under another key a chat begins anew, and ends without the first one's."""
    said = [{"role": "user", "parts": [{"type": "text", "text": "x"}]}]
    talk = {"id": CHAT, "messages": said, "max_tokens": 3}
    told = await two.door.post("/api/chat", talk, two.other)
    assert told.status == 200
    assert (await two.door.post(f"/api/chat/{CHAT}/stop", None, two.other)).status == 200
    assert len((await two.door.get("/v1/jobs", two.mine)).json["data"]) == 2
