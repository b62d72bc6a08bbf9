"""Version 1 meets version 2, in short: records and entries as version 1 wrote them.

The same with the programs of version 1 is in tests/chaos/test_versions.py; the table of who meets
whom is in docs/protocol.md.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from workers.null_workers import command, expected_text, follow, leaked_keys, worker
from workers.stubs import running
from workers.stubs import until as server_says

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.contract.events import Finish
from tokenbus.producer.contract.new_job import digest_of, new_job
from tokenbus.producer.contract.result import JobResult
from tokenbus.producer.contract.schema import JobRequest, StoredRequest
from tokenbus.producer.errors import IdempotencyConflict, JobUnknown, SchemaMismatch

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts

BOTH = "speaks wire version 3; this release speaks 1 and 2"
CHAT = [{"role": "user", "content": "hello"}]


async def inherit(
    scripts: Scripts, job_id: str, *, seed: int = 1, tenant: str = "shop", **changed: str
) -> None:
    """Leave a waiting job as version 1 did: a record without `v`, an entry of its lane."""
    request = JobRequest.build(v=1, prompt="hello", seed=seed, max_tokens=6, tenant=tenant)
    made = new_job(request.model_copy(update={"id": job_id}))
    lane = f"{scripts.keys.of('lane1')}1:{tenant}"
    cost = {"prompt": 5, "output": 6, "n": 1, "logged": 0, "prefix": ""}
    fields: Any = {"v": 1, "job": job_id, "tenant": tenant} | cost
    entry = await scripts.redis.xadd(lane, fields)
    record: dict[str, Any] = {
        "state": "waiting",
        "epoch": 0,
        "owner": "",
        "attempts": 0,
        "priority": 1,
        "weight": 1,
        "charge": 0,
        "request": made.request,
        "digest": made.digest,
        "idem": "",
        "created": int(time.time() * 1000),
        "queued": 11,
        "stream": lane,
        "entry": entry,
    }
    record |= cost | {"tenant": tenant} | changed
    await command(scripts, "HSET", scripts.keys.of("job", job_id), *_pairs(record))
    await command(scripts, "ZADD", f"{scripts.keys.of('backlog1')}1", 0, tenant)
    load = scripts.keys.of("load")
    for field, amount in (("tokens", 11), ("jobs", 1), ("tokens:1", 11), ("jobs:1", 1)):
        await command(scripts, "HINCRBY", load, field, amount)
    await command(scripts, "HINCRBY", load, f"tenant:{tenant}", 11)


def _pairs(fields: dict[str, Any]) -> list[Any]:
    return [part for pair in fields.items() for part in pair]


async def test_waiting_job_of_version_1_is_finished_in_version_1(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """Its events and result keep version and names; only its tenant finds it, by tenant and id."""
    await inherit(scripts, "old")
    listener: Any = scripts.redis.pubsub(ignore_subscribe_messages=True)
    await listener.subscribe(scripts.keys.channel("old"))
    reader = asyncio.create_task(follow(client, "old", tenant="shop"))
    async with worker(pool, redis_url):
        assert (await reader).text == expected_text(1, 6)
        result = await client.result("old", tenant="shop", timeout_s=PATIENCE_S)
        assert (result.tenant, result.version, result.text) == ("shop", 1, expected_text(1, 6))
        events = [event async for event in client.stream("old", tenant="shop")]
        assert {(event.tenant, event.version) for event in events} == {("shop", 1)}
        for tenant in ("default", "other"):
            with pytest.raises(JobUnknown):
                await client.result("old", tenant=tenant)
    async with asyncio.timeout(PATIENCE_S):
        while (message := await listener.get_message(timeout=1)) is None:
            pass
    wire = json.loads(message["data"])
    assert (wire["v"], wire["job"], wire.get("tenant")) == (1, "old", None)
    await listener.aclose()
    assert json.loads(await scripts.log.result("old") or b"")["v"] == 1
    assert await leaked_keys(scripts) == []


async def test_submit_of_an_inherited_job_is_the_same_job(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """Submitting again under the id that version 1 accepted makes no second job."""
    await inherit(scripts, "order-7", seed=3)
    fields: dict[str, Any] = {"prompt": "hello", "seed": 3, "max_tokens": 6, "id": "order-7"}
    again = await client.submit(**fields, tenant="shop")
    assert not again.created
    with pytest.raises(IdempotencyConflict):
        await client.submit(**fields | {"max_tokens": 7}, tenant="shop")
    with pytest.raises(IdempotencyConflict):
        await client.submit(**fields)
    others = await client.submit(**fields, tenant="other")
    assert others.created
    async with worker(pool, redis_url):
        for job in (again, others):
            assert (await follow(client, job)).text == expected_text(3, 6)
    assert (await client.result(again)).version == 1


async def test_inherited_job_is_cancelled_by_its_tenant_alone(
    client: AsyncClient, scripts: Scripts
) -> None:
    """A cancel under another tenant knows nothing of it."""
    await inherit(scripts, "old")
    for tenant in ("default", "other"):
        with pytest.raises(JobUnknown):
            await client.cancel("old", tenant=tenant)
    assert await client.cancel("old", tenant="shop")
    assert (await follow(client, "old", tenant="shop")).reason == "cancelled"
    assert json.loads(await scripts.log.result("old") or b"")["v"] == 1


async def test_delays_and_ends_that_version_1_left_are_taken_over(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """What waits for its time, or for the end of its completion, is found by the new tick."""
    await inherit(scripts, "late", state="delayed")
    await command(scripts, "ZADD", scripts.keys.of("due1"), 1, "n:late")
    finish = Finish("cancelled").dump()
    await inherit(scripts, "over", tenant="firm", state="ending", epoch="1", finish=finish)
    await command(scripts, "ZADD", scripts.keys.of("ending1"), 1, "over")
    for job_id, tenant in (("late", "shop"), ("over", "firm")):
        record = scripts.keys.of("job", job_id)
        await command(scripts, "DEL", f"{scripts.keys.of('lane1')}1:{tenant}")
        await command(scripts, "HSET", record, "stream", "", "entry", "")
    async with worker(pool, redis_url):
        assert (await follow(client, "late", tenant="shop")).text == expected_text(1, 6)
        assert (await follow(client, "over", tenant="firm")).reason == "cancelled"


async def test_raw_body_of_version_1_keeps_its_version(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """Its events are of version 1; its name is its tenant's own, like any that is given now."""
    body = {"v": 1, "id": "raw-in", "tenant": "shop", "prompt": "x", "seed": 2, "max_tokens": 4}
    await scripts.redis.xadd(scripts.keys.of("inbox"), {"job": json.dumps(body)})
    async with worker(pool, redis_url):
        async with asyncio.timeout(PATIENCE_S):
            while await scripts.queue.record("raw-in@shop") is None:
                pass
        assert (await follow(client, "raw-in", tenant="shop")).text == expected_text(2, 4)
        assert (await client.result("raw-in", tenant="shop")).version == 1
        with pytest.raises(JobUnknown):
            await client.result("raw-in")


async def test_job_of_a_later_version_is_refused_by_worker_and_reader(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """Body, stored request, entry, record, event and result: each names both versions."""
    job = await client.submit("hello", max_tokens=4, id="request")
    key = scripts.keys.of("job", job.job_id)
    await command(scripts, "HSET", key, "request", '{"v":4,"prompt":"hello","news":1}')
    lane = scripts.keys.lane(1, "default")
    await command(scripts, "XADD", lane, "*", "v", 3, "job", "entry", "tenant", "default")
    await scripts.redis.xadd(scripts.keys.of("inbox2"), {"job": '{"v":3}', "reply": "r" * 16})
    async with worker(pool, redis_url):
        for job_id in ("request", "entry"):
            async with asyncio.timeout(PATIENCE_S):
                while await scripts.queue.record(job_id) is None:
                    pass
            story = await follow(client, job_id)
            assert story.finish is not None
            assert story.finish.error is not None
            told = BOTH.replace("3", "4") if job_id == "request" else BOTH
            assert (story.finish.error.field, told in story.finish.error.message) == ("v", True)
        answer = await command(scripts, "BLPOP", scripts.keys.of("replies", "r" * 16), PATIENCE_S)
        assert BOTH in answer[1].decode()
    later = await client.submit("hello", max_tokens=4, id="later")
    reading = asyncio.create_task(follow(client, later))
    await asyncio.sleep(0)
    await command(scripts, "HSET", scripts.keys.of("job", "later"), "v", 3)
    async with asyncio.timeout(PATIENCE_S):
        while not reading.done():
            for channel in await command(scripts, "PUBSUB", "CHANNELS", f"{{tb:{pool}*"):
                await command(scripts, "PUBLISH", channel, '{"v":3,"job":"later"}')
            await asyncio.wait([reading], timeout=0.05)
    with pytest.raises(SchemaMismatch, match=BOTH):
        await reading
    with pytest.raises(SchemaMismatch, match=BOTH):
        JobResult.parse('{"v":3,"job":"later"}')


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ({"prompt": "hello"}, 2),
        ({"messages": CHAT, "response_format": {"type": "json_object"}, "model": "null"}, 2),
        ({"messages": CHAT, "stop": "x", "logprobs": True, "temperature": 1.0}, 2),
        ({"messages": CHAT, "max_reasoning_tokens": 5}, 3),
        ({"messages": CHAT, "enable_thinking": False}, 3),
        ({"messages": CHAT, "continue_final_message": True}, 3),
        ({"prompt": "hello", "max_tokens": 0}, 3),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_stored_request_says_what_its_reader_must_know(given: dict[str, Any], stored: int) -> None:
    """The first readers of version 2 refuse some fields: they refuse them by version.

    The job is of version 2 all the same, and its digest does not change.
    """
    request = JobRequest.build(**given)
    made = new_job(request)
    assert (json.loads(made.request)["v"], made.version) == (stored, 2)
    read = StoredRequest.parse(made.request)
    assert read.v == 2
    assert made.digest == digest_of(request)
    with pytest.raises(SchemaMismatch, match=BOTH):
        JobRequest.parse('{"v":3,"prompt":"hello"}')


async def test_unknown_fields_inside_version_2_are_left_out(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """Events, entries and results of version 2 may carry more than this release reads."""
    job = await client.submit("hello", max_tokens=4, id="more", tenant="shop")
    wire = {"v": 2, "job": "more", "tenant": "shop", "epoch": 1, "choice": 0, "ids": [7]}
    wire |= {"from": 1, "to": 1, "text": "a", "ends": [1], "parts": [{"kind": "new"}]}
    finish = {"reason": "stop", "usage": {"completion_tokens": 1, "more": 2}, "also": []}
    end = wire | {"from": 2, "to": 1, "text": "", "ids": [], "ends": [], "finish": finish}
    # Who submitted it reads a channel of its own.
    async with await AsyncClient.connect(redis_url, pool=pool) as other:
        reading = asyncio.create_task(follow(other, job))
        async with asyncio.timeout(PATIENCE_S):
            while not reading.done():
                for message in (wire, end):
                    await command(scripts, "PUBLISH", job.channel, json.dumps(message))
                await asyncio.wait([reading], timeout=0.05)
    story = await reading
    assert (story.text, story.reason) == ("a", "stop")
    stored = {"v": 2, "job": "more", "tenant": "shop", "epoch": 1, "finish": finish, "news": {}}
    choice = {"text": "a", "ids": [7], "ends": [1], "reason": "stop", "typed": []}
    result = JobResult.parse(json.dumps(stored | {"choices": [choice], "runs": [[0, 1, 1]]}))
    assert (result.text, result.tenant, result.version) == ("a", "shop", 2)


# The last step of completion as the release before made it, and what it read of a record.
EXPIRE_RECORD = """
local record = redis.call('HMGET', KEYS[1] .. ':job:' .. ARGV[1], 'state', 'idem')
if record[1] and record[1] ~= 'done' then
  return 0
end
redis.call('ZREM', KEYS[1] .. ':ending2', ARGV[1])
redis.call('PEXPIRE', KEYS[1] .. ':job:' .. ARGV[1], ARGV[2])
if record[2] and record[2] ~= '' then
  redis.call('PEXPIRE', KEYS[1] .. ':idem:' .. record[2], ARGV[2])
end
return 1
"""
OLD_FIELDS = ("state", "epoch", "owner", "attempts", "tenant", "priority", "finish", "v")


async def test_done_job_is_read_as_the_release_before_does(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """Record and result have what it reads; its last step, made once more, changes nothing."""
    async with worker(pool, redis_url):
        job = await client.submit("hello", seed=4, max_tokens=6, idempotency_key="k")
        await follow(client, job)

        async def is_complete() -> bool:
            return not await command(scripts, "EXISTS", scripts.keys.log(job.job_id))

        await server_says(is_complete)
    key = scripts.keys.of("job", job.job_id)
    fields = await command(scripts, "HMGET", key, *OLD_FIELDS)
    assert fields == [b"done", b"1", None, None, b"default", None, b'{"reason":"length"}', b"2"]
    assert Finish.parse(fields[6]).reason == "length"
    assert JobResult.parse(await scripts.log.result(job.job_id) or b"").text == expected_text(4, 6)
    ttls = [await command(scripts, "PTTL", key)]
    prefix = scripts.keys.prefix
    ttl_ms = 3_605_000
    assert await command(scripts, "EVAL", EXPIRE_RECORD, 1, prefix, job.job_id, ttl_ms) == 1
    ttls.append(await command(scripts, "PTTL", key))
    assert all(0 < ttl <= ttl_ms for ttl in ttls)
    again = await client.submit("hello", seed=4, max_tokens=6, idempotency_key="k")
    assert (again.job_id, again.created) == (job.job_id, False)


async def test_completion_that_the_release_before_began_is_finished(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """A record that is done as it left it, still in `ending`: a tick takes the last steps."""
    stub, job_id = await running(client)
    await stub.append(job_id, 1, 1, 3)
    end = await stub.end(job_id, 1, 3)
    key = scripts.keys.of("job", job_id)
    await command(scripts, "HSET", key, "state", "done", "finish", end.finish, "charge", 35)
    await command(scripts, "HDEL", key, "request")
    await command(scripts, "HDEL", scripts.keys.of("held", stub.name), job_id)
    await command(scripts, "HDEL", scripts.keys.of("holding", "1"), "default")
    await command(scripts, "ZREM", scripts.keys.of("running", "1"), "default")
    await command(scripts, "ZADD", scripts.keys.of("ending"), 1, job_id)
    async with worker(pool, redis_url):

        async def is_over() -> bool:
            return not await command(scripts, "ZCARD", scripts.keys.of("ending"))

        await server_says(is_over)
        assert [event.to async for event in client.stream(job_id)][-1] == 3
        for left in (key, scripts.keys.log(job_id), scripts.keys.result(job_id)):
            assert 0 < await command(scripts, "PTTL", left) <= 3_605_000
