"""Streams that break off: the rest is the same from any gateway, frame by frame."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from gateways.doors import Door, Frame, door, door_process, frames_of
from patience import PATIENCE_S
from workers.null_workers import until, worker

from tokenbus.producer.client.async_client import AsyncClient

if TYPE_CHECKING:
    from tokenbus.producer.server.embedded import EmbeddedServer

BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 30,
    "n": 2,
    "seed": 4,
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}
BODY_AT_ONCE = {name: BODY[name] for name in ("messages", "n", "seed")}
PATHS = {"/v1/chat/completions": BODY, "/v1/completions": {**BODY, "prompt": ["a", "b"]}}
del PATHS["/v1/completions"]["messages"]
PACE = {"null_tokens_per_s": 40.0, "lease_ttl_s": 60}


def shown(frames: list[Frame]) -> list[tuple[str | None, str]]:
    """Return the frames with data, with their ids."""
    return [(frame.id, frame.data) for frame in frames if frame.data]


def text_of(frame: Frame) -> str:
    """Return what a frame tells of choices, without the count of tokens before it."""
    return frame.data.partition(',"usage"')[0] if '"choices":[{' in frame.data else frame.data


async def ended(running: Door, job_id: str) -> str:
    """Wait for the end of a job and return why it ended."""
    told: Any = {}
    try:
        async with asyncio.timeout(PATIENCE_S):
            while told.get("status") != "done":
                told = (await running.get(f"/v1/jobs/{job_id}")).json
    except TimeoutError:
        raise AssertionError(f"{job_id} has not ended; the last that was told: {told}") from None
    reason: str = told["reason"]
    return reason


async def first_frames(running: Door, path: str, body: Any, count: int) -> list[Frame]:
    """Read some frames with data of a stream and leave."""
    frames: list[Frame] = []
    async with running.open("POST", path, body) as response:
        assert response.status == 200, await response.text()
        async for frame in frames_of(response):
            if frame.data:
                frames.append(frame)
            if len(frames) == count:
                break
    return frames


async def test_rest_after_any_frame_is_the_same(private_server: EmbeddedServer, pool: str) -> None:
    """After each frame, at both routes and from another gateway, the rest is equal to the byte."""
    url = private_server.url
    async with worker(pool, url, lease_ttl_s=60), door(url, pool) as one, door(url, pool) as other:
        for path, body in PATHS.items():
            told = await one.post(path, {**body, "max_tokens": 3})
            job_id = told.job_id
            whole = shown(told.frames)
            assert whole[-1] == (None, "[DONE]")
            ids = [frame_id for frame_id, _ in whole[:-1]]
            assert len(set(ids)) == len(ids)
            for number, (frame_id, _) in enumerate(whole[:-1], 1):
                tail = [frame for frame in told.frames if frame.data][number:]
                named = {"Last_Event_ID": str(frame_id)}
                if number % 2:
                    rest = await other.get(f"/v1/jobs/{job_id}/stream", **named)
                else:
                    rest = await other.post(path, body, **named)
                if path == "/v1/chat/completions":
                    assert shown(rest.frames) == whole[number:]
                else:
                    # Several prompts come in any order, each in its own.
                    assert sorted(map(text_of, rest.frames)) == sorted(map(text_of, tail))


async def test_every_gateway_may_die_in_mid_stream(
    private_server: EmbeddedServer, pool: str
) -> None:
    """Streams of gateways that are killed go on at another, nothing doubled and nothing lost."""
    url = private_server.url
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(worker(pool, url, **PACE))
        last = await stack.enter_async_context(door(url, pool))
        mortal = await stack.enter_async_context(door_process(url, pool))
        num_frames = [3, 8, 15, 30]
        half_way, is_killed = asyncio.Event(), asyncio.Event()
        begun = [asyncio.Event() for _ in num_frames]
        kept: list[list[Frame]] = [[] for _ in num_frames]

        async def read(number: int) -> None:
            try:
                async with mortal.open("POST", "/v1/chat/completions", BODY) as response:
                    assert response.status == 200, await response.text()
                    async for frame in frames_of(response):
                        if frame.data:
                            kept[number].append(frame)
                            begun[number].set()
                        if len(kept[number]) == num_frames[number]:
                            if number == 2:
                                half_way.set()
                            # Of a gateway that was held up all may come at once, with the end.
                            await is_killed.wait()
                            return
            except (OSError, aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError):
                return

        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as reading:
            for number in range(len(num_frames)):
                reading.create_task(read(number))
            for each in (*begun, half_way):
                await each.wait()
            assert mortal.process is not None
            mortal.process.send_signal(signal.SIGKILL)
            is_killed.set()
        for frames in kept:
            assert frames
            last_id = str(frames[-1].id)
            job_id = last_id.partition(":")[0]
            rest = await last.get(f"/v1/jobs/{job_id}/stream", Last_Event_ID=last_id)
            unbroken = await last.get(f"/v1/jobs/{job_id}/stream")
            assert shown(frames) + shown(rest.frames) == shown(unbroken.frames)
            assert rest.frames[-1].data == "[DONE]"


async def test_reader_that_leaves_takes_its_job_along_after_a_grace(
    private_server: EmbeddedServer, pool: str
) -> None:
    """A chat is cancelled once nobody reads it, at once where resuming is off; a job goes on."""
    url = private_server.url
    slow = {**BODY, "max_tokens": 4000}
    async with (
        worker(pool, url, **PACE),
        door(url, pool, gateway_grace_s=0) as strict,
        door(url, pool, gateway_grace_s=0.6) as kind,
    ):
        left: list[str] = []
        for running in (strict, kind):
            frames = await first_frames(running, "/v1/chat/completions", slow, 3)
            left.append(str(frames[-1].id).partition(":")[0])
            assert await ended(kind, left[-1]) == "cancelled"
        asking = asyncio.create_task(
            strict.post("/v1/chat/completions", {**BODY_AT_ONCE, "max_tokens": 4000})
        )
        asked: list[str] = []
        async with asyncio.timeout(PATIENCE_S):
            while not asked:
                # Other pools of the server may have jobs that wait for ever.
                listed = (await kind.get("/v1/jobs")).json["data"]
                own = [job["id"] for job in listed if job["pool"] == pool]
                asked = [job_id for job_id in own if job_id not in left]
        asking.cancel()
        assert await ended(kind, asked[0]) == "cancelled"
        told = await strict.post("/v1/jobs", {"prompt": "hi", "max_tokens": 20})
        async with strict.open("GET", told.json["stream"]) as response:
            assert (await anext(frames_of(response))).event == "delta"
        assert await ended(kind, told.json["id"]) == "length"


@pytest.mark.parametrize("is_before", [True, False], ids=["before", "after"])
async def test_reader_that_leaves_while_its_job_is_submitted_takes_it_along(
    private_server: EmbeddedServer, pool: str, monkeypatch: pytest.MonkeyPatch, *, is_before: bool
) -> None:
    """Whether the queue has the job before or after the reader has left, it is cancelled."""
    url, submit = private_server.url, AsyncClient.submit
    reached, gone, jobs = asyncio.Event(), asyncio.Event(), list[str]()

    async def submit_around(client: AsyncClient, *args: Any, **fields: Any) -> Any:
        if is_before:
            reached.set()
            await gone.wait()
        job = await submit(client, *args, **fields)
        jobs.append(job.job_id)
        reached.set()
        await gone.wait()
        return job

    monkeypatch.setattr(AsyncClient, "submit", submit_around)
    async with (
        worker(pool, url, **PACE),
        door(url, pool, gateway_grace_s=0) as strict,
        door(url, pool) as other,
    ):
        assert strict.server is not None
        connections = strict.server.server_state.connections
        for body in (BODY, BODY_AT_ONCE):
            reached.clear()
            gone.clear()
            asked = strict.post("/v1/chat/completions", {**body, "max_tokens": 4000})
            asking = asyncio.create_task(asked)
            async with asyncio.timeout(PATIENCE_S):
                await reached.wait()
            asking.cancel()
            await until(lambda: not connections)
            gone.set()
            await until(lambda: bool(jobs))
            assert await ended(other, jobs.pop()) == "cancelled"


async def test_reader_who_resumes_keeps_the_job(private_server: EmbeddedServer, pool: str) -> None:
    """Within the grace another reader, at another gateway, takes the job over."""
    url = private_server.url
    async with (
        worker(pool, url, **PACE),
        door(url, pool, gateway_grace_s=1.0) as one,
        door(url, pool, gateway_grace_s=1.0) as other,
    ):
        frames = await first_frames(one, "/v1/chat/completions", {**BODY, "max_tokens": 48}, 3)
        last_id = str(frames[-1].id)
        job_id = last_id.partition(":")[0]
        rest = await other.get(f"/v1/jobs/{job_id}/stream", Last_Event_ID=last_id)
        assert rest.data_frames[-1].data == "[DONE]"
        assert "error" not in rest.data_frames[-2].json
        assert rest.chunks[-1]["usage"]["completion_tokens"] == 96


async def test_gateway_that_closes_tells_its_readers_to_resume(
    private_server: EmbeddedServer, pool: str
) -> None:
    """What ends in time ends; the rest is told where to go on, and goes on there."""
    url = private_server.url
    async with worker(pool, url, **PACE), door(url, pool) as other:
        async with door(url, pool, gateway_drain_s=0.1) as closing:
            asked = closing.post("/v1/chat/completions", {**BODY, "max_tokens": 4000})
            reading = asyncio.create_task(asked)
            assert closing.gateway is not None
            streams = closing.gateway.streams
            await until(lambda: reading.done() or any(stream.has_begun for stream in streams._open))
            assert closing.server is not None
            closing.server.should_exit = True
            told = await reading
        job_id = told.job_id
        *frames, error, done = told.data_frames
        assert any("resume" in frame.comment for frame in told.frames)
        assert error.json["error"]["code"] == "gateway_closing"
        assert done.data == "[DONE]"
        rest: list[Frame] = []
        last_id = {"Last_Event_ID": str(frames[-1].id)}
        async with other.open("GET", f"/v1/jobs/{job_id}/stream", **last_id) as response:
            async for frame in frames_of(response):
                rest.append(frame)
                if len(shown(rest)) == 5:
                    # It has gone on, and would for long.
                    await other.post(f"/v1/jobs/{job_id}/cancel", None)
        unbroken = await other.get(f"/v1/jobs/{job_id}/stream")
        assert len(shown(rest)) > 5
        assert shown(frames) + shown(rest) == shown(unbroken.frames)
