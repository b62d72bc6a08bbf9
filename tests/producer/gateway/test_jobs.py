"""Jobs over HTTP: submitted, listed, cancelled and streamed; and a queue that is full."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from gateways.doors import door, frames_of
from patience import PATIENCE_S
from prometheus_client.parser import text_string_to_metric_families
from workers.null_workers import expected_text, worker
from workers.stubs import StubWorker

from tokenbus.producer.gateway.pools.pool_view import view_pools
from tokenbus.producer.gateway.routes.health import why_not
from tokenbus.producer.telemetry.gateway_table import BUILD_INFO, GATEWAY, OPEN_REQUESTS

if TYPE_CHECKING:
    from gateways.doors import Door

    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.server.embedded import EmbeddedServer

BODY: dict[str, Any] = {"prompt": "hi", "max_tokens": 5, "seed": 1}


@pytest.mark.asyncio(loop_scope="module")
async def test_job_is_streamed_and_shown(null_door: Door) -> None:
    """A job streams a frame per token with its cursor, then its end; its result has the same."""
    made = await null_door.post("/v1/jobs", {**BODY, "metadata": {"shop": "7"}})
    assert made.status == 202
    stream = await null_door.get(made.json["stream"])
    *deltas, end = stream.frames
    assert [(frame.event, frame.id) for frame in deltas] == [("delta", str(i)) for i in range(1, 6)]
    assert "".join(frame.json["delta"]["content"] for frame in deltas) == expected_text(1, 5)
    assert (end.event, end.id, end.json["finish"]["reason"]) == ("end", "6", "length")
    for cursor in (0, 2, 5, 6):
        rest = await null_door.get(made.json["stream"], Last_Event_ID=str(cursor))
        assert rest.frames == stream.frames[cursor:]
        rest = await null_door.get(f"{made.json['stream']}?after={cursor}")
        assert rest.frames == stream.frames[cursor:]
    shown = (await null_door.get(f"/v1/jobs/{made.json['id']}")).json
    assert (shown["status"], shown["reason"]) == ("done", "length")
    assert shown["choices"][0]["text"] == expected_text(1, 5)
    assert shown["created"] == made.json["created"]


async def test_job_has_its_result_as_soon_as_its_readers_have_the_end(
    scripts: Scripts, redis_url: str, pool: str
) -> None:
    """What its stream has told is shown, while the worker has still to complete its record."""
    stub = StubWorker(scripts)
    await stub.reconcile()
    async with door(redis_url, pool) as running:
        made = (await running.post("/v1/jobs", BODY)).json
        [pulled] = (await stub.pull()).jobs
        await stub.run(pulled.job_id, pulled.epoch, 2)
        stream = await running.get(made["stream"])
        shown = (await running.get(f"/v1/jobs/{made['id']}")).json
    assert stream.frames[-1].event == "end"
    assert (shown["status"], shown["reason"]) == ("done", "stop")
    assert shown["choices"][0]["text"]


@pytest.mark.asyncio(loop_scope="module")
async def test_job_is_listed_until_it_was_cancelled(null_door: Door) -> None:
    """What has not ended is listed; a cancel ends it, and may be repeated."""
    made = (await null_door.post("/v1/jobs", {**BODY, "not_before_s": 3000})).json
    assert made["status"] == "delayed"
    listed = (await null_door.get("/v1/jobs")).json["data"]
    assert made["id"] in [job["id"] for job in listed]
    for _ in range(2):
        told = await null_door.post(f"/v1/jobs/{made['id']}/cancel", None)
        assert told.status == 200
    stream = await null_door.get(made["stream"])
    assert stream.frames[-1].json["finish"]["reason"] == "cancelled"
    # Other pools of the server may have jobs that wait.
    listed = (await null_door.get("/v1/jobs")).json["data"]
    assert made["id"] not in [job["id"] for job in listed]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "path", ["s0-abc", "nothing", "%00", "s0-" + "0" * 52, "chatcmpl-x", "s0-" + "f" * 52 + ".ann"]
)
async def test_job_that_is_not_there_is_not_found(null_door: Door, path: str) -> None:
    """Ids of any form that name no job are 404, for every method."""
    for method, tail in (("GET", ""), ("GET", "/stream"), ("POST", "/cancel"), ("DELETE", "")):
        told = await null_door.ask(method, f"/v1/jobs/{path}{tail}")
        assert told.status == 404, told.text
        assert told.error["type"] == "not_found_error"


@pytest.mark.asyncio(loop_scope="module")
async def test_cursor_that_is_none_is_refused(null_door: Door) -> None:
    """A cursor is a number of the stream, and not of another one."""
    made = (await null_door.post("/v1/jobs", BODY)).json
    other = (await null_door.post("/v1/jobs", BODY)).json
    for cursor in ("x", "-1", "1,2", "1" * 30, f"{other['id']}:1"):
        told = await null_door.get(made["stream"], Last_Event_ID=cursor)
        assert (told.status, told.error["code"]) == (400, "invalid_cursor")


@pytest.mark.asyncio(loop_scope="module")
async def test_metrics_count_routes(null_door: Door) -> None:
    """Requests are counted by route and status, and no id is a label."""
    await null_door.get("/v1/jobs/nothing")
    text = (await null_door.get("/metrics")).text
    line = 'tokenbus_gateway_requests_total{route="/v1/jobs/{job_id}",status="404"}'
    assert line in text
    assert "nothing" not in text
    assert (await null_door.get("/readyz")).json["status"] == "ok"


@pytest.mark.asyncio(loop_scope="module")
async def test_metrics_tell_of_streams(null_door: Door) -> None:
    """A stream is counted with its times; what goes on from a cursor is no new beginning."""

    async def scrape() -> dict[str, float]:
        families = text_string_to_metric_families((await null_door.get("/metrics")).text)
        samples = [sample for family in families for sample in family.samples]
        seen = {metric.name.removesuffix("_total") for metric in GATEWAY.metrics}
        names = {"_bucket", "_count", "_sum", "_total"}
        for sample in samples:
            assert sample.name in seen or any(
                sample.name.removesuffix(each) in seen for each in names
            )
        found: dict[str, float] = {}
        for sample in samples:
            name = f"{sample.name} {sample.labels.get('outcome', '')}".strip()
            found[name] = found.get(name, 0) + sample.value
        return found

    before = await scrape()
    body = {**BODY, "stream": True}
    whole = await null_door.post("/v1/completions", body)
    cursor = whole.frames[2].id
    job_id = whole.headers["X-Tokenbus-Job-Id"]
    await null_door.get(f"/v1/jobs/{job_id}/stream", Last_Event_ID=str(cursor))
    after = await scrape()

    def grown(name: str) -> float:
        return after.get(f"tokenbus_gateway_{name}", 0) - before.get(f"tokenbus_gateway_{name}", 0)

    assert (grown("jobs_total"), grown("resumes_total"), grown("ends_total done")) == (1, 1, 2)
    assert (grown("ttft_seconds_count"), grown("e2e_seconds_count")) == (1, 1)
    assert 0 < grown("ttft_seconds_sum") <= grown("e2e_seconds_sum")
    assert grown("itl_seconds_count") >= 1


async def test_every_metric_moves_by_two_streams(
    scripts: Scripts, redis_url: str, pool: str
) -> None:
    """One that waits and is read to its end, another from a cursor on: nothing told stays."""
    names = {metric.name.removesuffix("_total") for metric in GATEWAY.metrics}
    names.remove(BUILD_INFO.name)
    async with (
        worker(pool, redis_url),
        door(redis_url, pool) as running,
        asyncio.timeout(PATIENCE_S),
    ):

        async def seen() -> dict[str, set[tuple[str, float]]]:
            text = (await running.get("/metrics")).text
            return {
                family.name: {(str(sample), sample.value) for sample in family.samples}
                for family in text_string_to_metric_families(text)
            }

        before = await seen()
        await scripts.control.pause(is_paused=True)
        body = {**BODY, "stream": True}
        reading = asyncio.create_task(running.post("/v1/completions", body))
        while (during := await seen())[OPEN_REQUESTS.name] == before[OPEN_REQUESTS.name]:
            assert not reading.done()
        await scripts.control.pause(is_paused=False)
        job_id = (await reading).headers["X-Tokenbus-Job-Id"]
        await running.get(f"/v1/jobs/{job_id}/stream", Last_Event_ID="3")
        after = await seen()
    looks = (during, after)
    assert {
        name for name in after if any(each.get(name) != before.get(name) for each in looks)
    } == names


async def test_view_of_pools_tells_what_their_workers_are_at(scripts: Scripts) -> None:
    """It says how far a start is, and not why a worker has no engine."""
    redis: Any = scripts.redis
    await redis.sadd(scripts.keys.of("starting"), "new", "old")
    for name, gauges in (
        ("new", {"phase": "starting", "phase_told": "reading weights", "percent": 40}),
        ("old", {"phase": "down", "ready": False, "outage": {"reason": "/srv/model is gone"}}),
    ):
        await redis.set(scripts.keys.of("status", name), json.dumps({"v": 1, **gauges}))
    view = (await view_pools(scripts, [scripts.keys.pool]))[scripts.keys.pool]
    assert view.phases == ("starting: reading weights, 40 %", "down")
    assert not view.is_ready
    assert why_not([view]).endswith("reading weights, 40 %; down")


async def test_error_in_mid_stream_is_a_frame_before_the_end(
    private_server: EmbeddedServer, pool: str
) -> None:
    """A job that is cancelled under its reader ends with an error frame and one `[DONE]`."""
    url = private_server.url
    async with (
        worker(pool, url, null_tokens_per_s=50.0, lease_ttl_s=60),
        door(url, pool) as running,
    ):
        body = {**BODY, "max_tokens": 4000, "stream": True}
        async with running.open("POST", "/v1/completions", body) as response:
            frames = frames_of(response)
            job_id = response.headers["X-Tokenbus-Job-Id"]
            assert (await anext(frames)).json["choices"][0]["text"]
            await running.post(f"/v1/jobs/{job_id}/cancel", None)
            rest = [frame async for frame in frames]
        assert rest[-2].json["error"]["code"] == "cancelled"
        assert [frame.data for frame in rest].count("[DONE]") == 1
        assert rest[-1].data == "[DONE]"


async def test_full_queue_says_when_to_come_back(
    private_server: EmbeddedServer, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue without room refuses before a stream begins, with the queue's own estimate.

    The status is 429, which every client retries by its header, where vLLM says 503. Of several
    prompts all are taken or none.
    """
    monkeypatch.setenv("TOKENBUS_MAX_TENANT_TOKENS", "100")
    async with door(private_server.url, pool, gateway_grace_s=0) as running:
        waits = [running.open("POST", "/v1/jobs", {**BODY, "max_tokens": 60})]
        async with waits[0] as response:
            assert response.status == 202
            job = await response.json()
        for is_streamed in (False, True):
            body = {**BODY, "max_tokens": 60, "stream": is_streamed}
            told = await running.post("/v1/completions", body)
            assert (told.status, told.error["code"]) == (429, "queue_full")
            assert int(told.headers["Retry-After"]) >= 1
        many = {**BODY, "prompt": ["a", "b", "c"], "max_tokens": 15}
        assert (await running.post("/v1/completions", many)).status == 429
        listed = (await running.get("/v1/jobs")).json["data"]
        own = [each for each in listed if each["pool"] == pool]
        assert [each["id"] for each in own if each["status"] == "waiting"] == [job["id"]]


async def test_place_in_the_queue_is_told_while_it_waits(
    private_server: EmbeddedServer, pool: str
) -> None:
    """A header and a comment have the place at the beginning; comments tell that it is alive."""
    url = private_server.url
    async with door(url, pool, gateway_keepalive_s=0.2, gateway_grace_s=0) as running:
        for _ in range(3):
            await running.post("/v1/jobs", BODY)
        async with asyncio.timeout(PATIENCE_S):
            body = {**BODY, "stream": True}
            async with running.open("POST", "/v1/completions", body) as response:
                assert response.headers["X-Tokenbus-Queue-Position"] == "3"
                frames = frames_of(response)
                assert (await anext(frames)).comment == "queue position 3"
                assert (await anext(frames)).comment == "waiting"
                async with worker(pool, url, lease_ttl_s=60):
                    rest = [frame async for frame in frames]
        assert rest[-1].data == "[DONE]"
        assert sum('"text":" ' in frame.data for frame in rest) == 5
