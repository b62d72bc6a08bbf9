"""Chats of web pages: told in parts, resumed after a reload, stopped, and kept apart."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from gateways.doors import Door, door, frames_of
from patience import PATIENCE_S
from workers import null_workers, stubs
from workers.null_workers import expected_text, worker
from workers.stubs import StubWorker

from tokenbus.producer.gateway.access.api_keys import ApiKeys
from tokenbus.producer.scripts.completion import JobCompletion
from tokenbus.producer.server.embedded import start_private

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateways.doors import Frame, Told

    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.server.embedded import EmbeddedServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTION = {"role": "user", "parts": [{"type": "text", "text": "rain"}]}
LENGTH = 30
ASKED: dict[str, Any] = {"messages": [QUESTION], "max_tokens": LENGTH, "seed": 5}
PACE = {"null_tokens_per_s": 100.0, "lease_ttl_s": 60}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def slow_door(private_server: EmbeddedServer, module_pool: str) -> AsyncIterator[Door]:
    """Run a gateway in front of a worker whose answers take half a second."""
    pool, url = f"{module_pool}-slow", private_server.url
    async with worker(pool, url, **PACE), door(url, pool) as running:
        yield running


def _text(parts: list[Any]) -> str:
    return "".join(part["delta"] for part in parts if part["type"] == "text-delta")


def _parts(frames: list[Frame]) -> list[Any]:
    return [frame.json for frame in frames if frame.data and frame.data != "[DONE]"]


@dataclass(slots=True)
class HeldAnswer:
    """An answer of three tokens so far, and of so many more once it may end."""

    worker: StubWorker
    job_id: str

    @classmethod
    async def begun(cls, scripts: Scripts) -> HeldAnswer:
        """Pull the next job and begin its answer."""
        worker = StubWorker(scripts)
        await worker.reconcile()
        while not (jobs := (await worker.pull()).jobs):
            pass
        await worker.start(jobs[0].job_id, 1)
        await worker.append(jobs[0].job_id, 1, 1, 3)
        return cls(worker, jobs[0].job_id)

    async def end(self) -> None:
        """Tell the rest."""
        for index in range(4, LENGTH + 1):
            await self.worker.append(self.job_id, 1, index, index)
        finish = (await self.worker.end(self.job_id, 1, LENGTH, "length")).finish
        await JobCompletion(self.worker.scripts).complete(self.job_id, finish)


async def _left(running: Door, pool: str, chat: str) -> tuple[list[Any], HeldAnswer]:
    """Ask, and hang up amid the answer; return the parts so far, and what is to come."""
    assert running.gateway is not None
    client = await running.gateway.models.client(pool)
    frames: list[Frame] = []
    async with asyncio.timeout(PATIENCE_S):
        answering = asyncio.create_task(HeldAnswer.begun(client.scripts))
        async with running.open("POST", "/api/chat", {**ASKED, "id": chat}) as response:
            assert response.status == 200, await response.text()
            async for frame in frames_of(response):
                frames.append(frame)
                if _text(_parts(frames)) == stubs.text_of(1, 3):
                    break
        streams = running.gateway.streams
        await null_workers.until(lambda: not len(streams))
        return _parts(frames), await answering


async def _resumed(running: Door, chat: str, key: str = "") -> Told:
    return await running.get(f"/api/chat/{chat}/stream", key)


async def test_answer_is_told_in_parts(null_door: Door) -> None:
    """The header names the protocol; the parts are those of one text, whole and in order."""
    told = await null_door.post("/api/chat", {**ASKED, "id": "a"})
    assert told.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert told.headers["Content-Type"].startswith("text/event-stream")
    parts = _parts(told.frames)
    kinds = list(dict.fromkeys(part["type"] for part in parts))
    assert kinds == [
        "start", "start-step", "text-start", "text-delta", "text-end", "finish-step", "finish",
    ]  # fmt: skip
    assert parts[0]["messageId"] == f"msg-{told.headers['X-Tokenbus-Job-Id']}"
    assert _text(parts) == expected_text(5, LENGTH)
    assert parts[-1]["finishReason"] == "length"
    assert told.frames[-1].data == "[DONE]"
    assert (await _resumed(null_door, "a")).status == 204


async def test_reloaded_page_has_the_answer_whole_at_any_door(
    private_server: EmbeddedServer, pool: str
) -> None:
    """Who asks again gets the same message from its beginning, then nothing is left to tell."""
    url = private_server.url
    async with door(url, pool) as running:
        before, answer = await _left(running, pool, "r/1")
        async with door(url, pool) as other:
            resuming = asyncio.create_task(_resumed(other, "r/1"))
            await answer.end()
            parts = _parts((await resuming).frames)
        assert parts[:3] == before[:3]
        assert _text(parts).startswith(_text(before))
        assert _text(parts) == stubs.text_of(1, LENGTH)
        assert parts[-1] == {"type": "finish", "finishReason": "length"}
        assert (await _resumed(running, "r/1")).status == 204


async def test_answer_that_ended_unread_is_told_once(
    private_server: EmbeddedServer, pool: str
) -> None:
    """A page that was away for the end has it when it comes back."""
    async with door(private_server.url, pool) as running:
        [start, *_], answer = await _left(running, pool, "away")
        await answer.end()
        path = f"/v1/jobs/{start['messageId'].removeprefix('msg-')}"
        assert (await running.get(path)).json["status"] == "done"
        told = await _resumed(running, "away")
        assert _text(_parts(told.frames)) == stubs.text_of(1, LENGTH)
        assert (await _resumed(running, "away")).status == 204


async def test_stop_ends_the_answer_for_all_readers(slow_door: Door) -> None:
    """Readers are told of the abort; a stop of another answer, or a second one, does nothing."""
    path, length = "/api/chat/stop/stop", 3000
    body = {**ASKED, "id": "stop", "max_tokens": length}
    async with slow_door.open("POST", "/api/chat", body) as response:
        stale = await slow_door.post(path, {"activeStreamId": "another"})
        assert stale.json == {"success": True, "stopped": False}
        named = {"activeStreamId": response.headers["X-Tokenbus-Job-Id"]}
        assert (await slow_door.post(path, named)).json == {"success": True, "stopped": True}
        parts = _parts([frame async for frame in frames_of(response)])
    assert parts[-2:] == [{"type": "finish-step"}, {"type": "abort"}]
    assert len(_text(parts)) < len(expected_text(5, length))
    assert (await _resumed(slow_door, "stop")).status == 204
    assert (await slow_door.ask("POST", path)).json == {"success": True, "stopped": False}


async def test_new_question_ends_the_answer_before_it(slow_door: Door) -> None:
    """A chat has one answer at a time, the last one."""
    body = {**ASKED, "id": "twice"}
    async with slow_door.open("POST", "/api/chat", {**body, "max_tokens": 3000}) as first:
        second = await slow_door.post("/api/chat", {**body, "seed": 6, "max_tokens": 8})
        parts = _parts([frame async for frame in frames_of(first)])
    assert parts[-1] == {"type": "abort"}
    assert _text(_parts(second.frames)) == expected_text(6, 8)


@asynccontextmanager
async def _keyed_door() -> AsyncIterator[tuple[Door, str, str]]:
    """Run a gateway with two keys, on a server of its own: others there would ask for keys too."""
    server = start_private()
    try:
        async with (
            worker("keys", server.url, **PACE),
            door(server.url, "keys", gateway_auth="keys") as running,
        ):
            assert running.gateway is not None
            keys = ApiKeys(running.gateway.redis)
            one, two = [(await keys.create(tenant=name))[0] for name in ("one", "two")]
            yield running, one, two
    finally:
        server.close()


@pytest.mark.slow
async def test_chats_of_keys_are_apart() -> None:
    """Under another key the same id is another chat: not read, not stopped, not ended."""
    async with _keyed_door() as (running, one, two):
        body = {**ASKED, "id": "same"}
        async with running.open("POST", "/api/chat", body, one) as response:
            assert (await _resumed(running, "same", two)).status == 204
            stopped = await running.post("/api/chat/same/stop", {}, two)
            assert stopped.json == {"success": True, "stopped": False}
            other = await running.post("/api/chat", {**body, "max_tokens": 2}, two)
            assert other.status == 200
            assert (await running.get("/api/chat/same/stream")).status == 401
            parts = _parts([frame async for frame in frames_of(response)])
    assert _text(parts) == expected_text(5, LENGTH)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"id": None}, 400, "id"),
        ({"id": "x" * 600}, 400, "id"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "parts": [{"type": "file"}]}]}, 400, "messages.0.parts.0"),
        ({"system": 3}, 400, "system"),
        ({"n": 2}, 400, "n"),
        ({"temperature": -1}, 400, "temperature"),
        ({"model": "no-such-model"}, 404, "model"),
    ],
)
async def test_what_is_wrong_is_refused_before_anything_is_told(
    null_door: Door, body: dict[str, Any], status: int, param: str
) -> None:
    """A body that asks for no answer is refused with its field, in OpenAI's shape."""
    told = await null_door.post("/api/chat", {**ASKED, "id": "wrong", **body})
    assert (told.status, told.error["param"]) == (status, param)
    assert (await _resumed(null_door, "wrong")).status == 204
