"""Garbage in the public inbox and in a lane in use: answered, kept, nobody disturbed."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from workers.null_workers import command, expected_text, follow, worker
from workers.stubs import until as server_says

from tokenbus.producer.client.dead_letters import DeadLetters
from tokenbus.producer.errors import JobUnknown

if TYPE_CHECKING:
    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.scripts import Scripts

GARBAGE: dict[str, tuple[bytes, str]] = {
    "not-json": (b"\x00\xff{{{", "job"),
    "not-an-object": (b"[1,2,3]", "job"),
    "empty": (b"", "job"),
    "no-prompt": (b'{"v":1,"max_tokens":4}', "prompt"),
    "wrong-type": (b'{"v":1,"prompt":["a"],"max_tokens":4}', "prompt"),
    "negative-max-tokens": (b'{"v":1,"prompt":"x","max_tokens":-1}', "max_tokens"),
    "text-max-tokens": (b'{"v":1,"prompt":"x","max_tokens":"many"}', "max_tokens"),
    "unknown-version": (b'{"v":99,"prompt":"x"}', "v"),
    "unknown-field": (b'{"v":1,"prompt":"x","temprature":1}', "temprature"),
    "nan": (b'{"v":1,"prompt":"x","temperature":NaN}', "temperature"),
    "huge-number": (b'{"v":1,"prompt":"x","seed":' + b"9" * 400 + b"}", "seed"),
    "deep": (b'{"v":1,"messages":' + b"[" * 5000 + b"]" * 5000 + b"}", "job"),
    "lone-surrogate": (b'{"v":1,"prompt":"\\ud800"}', "prompt"),
    "50-MB-prompt": (b'{"v":1,"prompt":"' + b"x" * 50_000_000 + b'"}', "job"),
}


async def _dead_letters(scripts: Scripts) -> dict[str, dict[str, Any]]:
    """Read the dead-letter stream: finish by job id."""
    entries = await scripts.redis.xrange(scripts.keys.of("dead"))
    return {
        fields[b"job"].decode(): json.loads(fields[b"finish"]) | {"body": fields[b"body"]}
        for _, fields in entries
    }


async def add_raw(scripts: Scripts, body: bytes, **fields: bytes) -> str:
    """Add a raw entry that asks for an answer; return the secret under which that comes."""
    secret = uuid.uuid4().hex
    entry: Any = {"job": body, "reply": secret} | fields
    await scripts.redis.xadd(scripts.keys.of("inbox"), entry)
    return secret


async def answer_to(scripts: Scripts, secret: str) -> dict[str, Any]:
    """Wait for the answer to a raw entry."""
    _, answer = await command(scripts, "BLPOP", scripts.keys.of("replies", secret), 2 * PATIENCE_S)
    found: dict[str, Any] = json.loads(answer)
    return found


async def test_garbage_in_the_inbox_is_answered_and_kept(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """A raw entry that is no job gets its failed event and dead letter; its neighbours finish."""
    secrets = {}
    for name, (body, _) in GARBAGE.items():
        before = await add_raw(scripts, b'{"v":1,"prompt":"hello","seed":1,"max_tokens":5}')
        bad = await add_raw(scripts, body)
        after = await add_raw(scripts, b'{"prompt":"hello","seed":2,"max_tokens":5}')
        secrets[name] = before, bad, after
    refused = {}
    async with worker(pool, redis_url):
        for name, (before, bad, after) in secrets.items():
            for secret, seed in ((before, 1), (after, 2)):
                told = await answer_to(scripts, secret)
                story = await follow(client, told["job"])
                assert story.text == expected_text(seed, 5), name
            told = await answer_to(scripts, bad)
            refused[told["job"]] = name
            story = await follow(client, told["job"])
            assert story.finish is not None, name
            assert story.reason == told["finish"]["reason"] == "failed", name
            assert story.finish.error is not None, name
            assert story.finish.error.field is not None, name
            assert story.finish.error.field.split(".")[0] == GARBAGE[name][1], name
    dead = await _dead_letters(scripts)
    assert dead.keys() == refused.keys()
    assert all(len(letter["body"]) <= 65_536 for letter in dead.values())
    assert await scripts.redis.xlen(scripts.keys.of("inbox")) == 0


async def test_names_that_the_pool_draws_cannot_be_guessed(
    scripts: Scripts, redis_url: str, pool: str
) -> None:
    """Of two entries of one millisecond nothing tells the names: neither ids nor refusals."""
    bodies = [b'{"prompt":"x","max_tokens":1}', b"garbage", b"x" * (9 * 1024 * 1024)]
    secrets = [await add_raw(scripts, body) for body in bodies for _ in range(2)]
    async with worker(pool, redis_url):
        names = [(await answer_to(scripts, secret))["job"] for secret in secrets]
    assert [name.partition("-")[0] for name in names] == ["raw"] * 2 + ["refused"] * 4
    assert all(re.fullmatch(r"(raw|refused)-[0-9a-f]{24}", name) for name in names)
    assert len(set(names)) == len(names)


async def test_inbox_entry_without_a_job_field_is_refused(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """An entry with other fields only is answered under a name of its own."""
    secret = uuid.uuid4().hex
    await scripts.redis.xadd(scripts.keys.of("inbox"), {"foo": "bar", "reply": secret})
    async with worker(pool, redis_url):
        told = await answer_to(scripts, secret)
        assert (await follow(client, told["job"])).reason == "failed"


async def _is_done(scripts: Scripts, job_id: str) -> bool:
    record = await scripts.queue.record(job_id)
    return record is not None and record.state == "done"


async def test_raw_entry_of_a_job_that_has_ended_is_answered_with_its_end(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """Whoever asks again hears on the job's channel how it ended, though no log changes."""
    listener: Any = scripts.redis.pubsub(ignore_subscribe_messages=True)
    body = json.dumps({"id": "again-1", "prompt": "x", "max_tokens": 3}).encode()
    async with worker(pool, redis_url):
        await add_raw(scripts, body)
        await answer_to(scripts, await add_raw(scripts, body))
        assert (await follow(client, "again-1")).reason == "length"
        await client.result("again-1", timeout_s=PATIENCE_S)
        await listener.subscribe(scripts.keys.channel("again-1"))
        await server_says(partial(_is_done, scripts, "again-1"))
        told = await answer_to(scripts, await add_raw(scripts, body))
        heard = await _message(listener)
    assert told["finish"]["reason"] == heard["finish"]["reason"] == "length"
    assert (heard["job"], heard["from"], heard["to"]) == ("again-1", 4, 3)


async def test_refused_body_occupies_no_name_and_is_heard_under_it(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """Who listens to the name hears of the refusal; the name stays free for its owner."""
    listener: Any = scripts.redis.pubsub(ignore_subscribe_messages=True)
    channel = scripts.keys.channel("mine-1@shop")
    await listener.subscribe(channel)
    body = {"id": "mine-1", "tenant": "shop", "prompt": 5}
    secret = await add_raw(scripts, json.dumps(body).encode())
    async with worker(pool, redis_url):
        heard = await _message(listener)
        told = await answer_to(scripts, secret)
        assert heard["job"] == "mine-1"
        assert heard["tenant"] == "shop"
        assert heard["finish"]["error"]["field"] == "prompt"
        with pytest.raises(JobUnknown):
            await client.result("mine-1", tenant="shop")
        mine = await client.submit("hello", id="mine-1", tenant="shop", seed=3, max_tokens=4)
        assert mine.created
        assert (await follow(client, mine)).text == expected_text(3, 4)
        assert (await follow(client, told["job"])).reason == "failed"
    await listener.aclose()
    [letter] = [letter async for letter in DeadLetters(client).newest()]
    assert (letter.job_id, letter.named, letter.tenant) == (told["job"], "mine-1", "shop")


async def test_refused_body_disturbs_no_job_of_its_name(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """A body that names a live job is refused elsewhere, and that job's readers hear nothing."""
    known = await client.submit("hello", seed=1, max_tokens=3)
    body = json.dumps({"v": 1, "id": known.job_id, "prompt": 5}).encode()
    secret = await add_raw(scripts, body)
    reader = asyncio.create_task(follow(client, known))
    async with worker(pool, redis_url):
        told = await answer_to(scripts, secret)
        assert (await follow(client, told["job"])).reason == "failed"
        assert (await reader).text == expected_text(1, 3)


async def test_secret_of_a_cache_group_is_kept_nowhere(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """Accepted, refused, no JSON, too long or misplaced: no key holds the secret afterwards."""
    secret = uuid.uuid4().hex
    good: dict[str, Any] = {
        "prompt": "x",
        "max_tokens": 2,
        "cache_group": "g",
        "cache_secret": secret,
    }
    bodies = [json.dumps(fields).encode() for fields in (good, good | {"max_tokens": -1})]
    bodies += [bodies[0] + b"}", bodies[0].replace(b'"x"', b'"' + b"x" * 9_000_000 + b'"')]
    bodies += _misplaced(secret)
    asked = [await add_raw(scripts, body) for body in bodies]
    async with worker(pool, redis_url):
        answers = [await answer_to(scripts, each) for each in asked]
        await client.result(answers[0]["job"])
        job = await client.submit(**good)
        assert (await client.result(job)).finish.reason == "length"
        waiting = await client.submit(**good, not_before_s=3600)
        assert "cache_secret" not in repr(waiting)
    assert [answer["job"].partition("-")[0] for answer in answers] == [
        "raw",
        *["refused"] * (len(bodies) - 1),
    ]
    async for key in scripts.redis.scan_iter(f"{{tb:{pool}*", count=1000):
        assert secret not in repr(await _content(scripts, key)), key
    assert await scripts.redis.xlen(scripts.keys.of("dead")) == len(bodies) - 1


def _misplaced(secret: str) -> list[bytes]:
    """Return bodies whose senders put a secret where it does not belong, or spelled it wrong."""
    told = {"cache_secret": secret}
    escaped = b'{"prompt":"x","cache\\u005fsecret":"%s"' % secret.encode()
    return [
        json.dumps({"prompt": "x", "metadata": told, "n": 0}).encode(),
        json.dumps([told]).encode(),
        json.dumps(json.dumps(told)).encode(),
        json.dumps({"prompt": "x", "Cache-Secret": secret}).encode(),
        repr(told).encode(),
        json.dumps({"prompt": "x", "cache_secret": [secret]}).encode()[:-1],
        escaped,
        escaped + b',"metadata":{"a":"' + b"x" * 9_000_000 + b'"}}',
    ]


async def _content(scripts: Scripts, key: bytes) -> Any:
    """Read a key of any type."""
    kind = (await command(scripts, "TYPE", key)).decode()
    reading: dict[str, tuple[str, ...]] = {
        "string": ("GET",),
        "hash": ("HGETALL",),
        "list": ("LRANGE", "0", "-1"),
        "set": ("SMEMBERS",),
        "zset": ("ZRANGE", "0", "-1"),
        "stream": ("XRANGE", "-", "+"),
    }
    name, *bounds = reading[kind]
    return await command(scripts, name, key, *bounds)


async def _message(listener: Any) -> dict[str, Any]:
    """Wait for the next message of a subscription."""
    async with asyncio.timeout(PATIENCE_S):
        while (message := await listener.get_message(timeout=1)) is None:
            pass
    found: dict[str, Any] = json.loads(message["data"])
    return found


LANE_GARBAGE: dict[str, dict[str, str]] = {
    "no-fields-of-ours": {"foo": "bar"},
    "job-id-with-spaces": {"job": "a b c", "v": "1"},
    "no-numbers": {"job": "ghost-1", "v": "1", "tenant": "acme"},
    "text-numbers": {
        "job": "ghost-2",
        "v": "1",
        "tenant": "acme",
        "prompt": "many",
        "output": "x",
        "n": "1",
        "logged": "0",
    },
    "negative": {
        "job": "ghost-3",
        "v": "1",
        "tenant": "acme",
        "prompt": "10",
        "output": "-5",
        "n": "1",
        "logged": "0",
    },
    "unknown-version": {"job": "ghost-4", "v": "7", "tenant": "acme"},
    "no-such-job": {
        "job": "ghost-5",
        "v": "1",
        "tenant": "acme",
        "prompt": "10",
        "output": "5",
        "n": "1",
        "logged": "0",
    },
}


async def test_garbage_in_a_lane_in_use_is_buried_and_the_lane_goes_on(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """An entry written straight into a lane is dead-lettered; the jobs before and after it run."""
    jobs = []
    for number, fields in enumerate(LANE_GARBAGE.values()):
        tenant = f"acme-{number}"
        first = await client.submit("hello", seed=1, max_tokens=4, tenant=tenant)
        told = fields | ({"tenant": tenant} if "tenant" in fields else {})
        pairs = [part for pair in told.items() for part in pair]
        await command(scripts, "XADD", scripts.keys.lane(1, tenant), "*", *pairs)
        second = await client.submit("hello", seed=2, max_tokens=4, tenant=tenant)
        jobs += [(first, 1), (second, 2)]
    async with worker(pool, redis_url):
        for job, seed in jobs:
            assert (await follow(client, job)).text == expected_text(seed, 4), job.tenant
    dead = await _dead_letters(scripts)
    assert len(dead) == len(LANE_GARBAGE)
    assert {letter["error"]["code"] for letter in dead.values()} == {"invalid_request"}
    for number in range(len(LANE_GARBAGE)):
        assert await scripts.redis.exists(scripts.keys.lane(1, f"acme-{number}")) == 0


async def test_record_whose_request_was_ruined_fails_by_name(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """A request that is broken in its record, past every check of the queue, fails alone."""
    job = await client.submit("hello", max_tokens=4)
    good = await client.submit("hello", seed=2, max_tokens=4)
    body = b'{"v":1,"prompt":"x","max_tokens":-4}'
    await command(scripts, "HSET", scripts.keys.of("job", job.job_id), "request", body)
    async with worker(pool, redis_url):
        story = await follow(client, job)
        assert (await follow(client, good)).text == expected_text(2, 4)
    assert story.finish is not None
    assert story.finish.error is not None
    assert story.finish.error.field == "max_tokens"


async def test_request_that_the_engine_fails_takes_nobody_with_it(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """A sequence that the engine gives up ends `failed`; those beside it finish."""
    async with worker(pool, redis_url, null_fail_id=7):
        bad = await client.submit(token_ids=[7], max_tokens=4)
        good = [await client.submit("hello", seed=s, max_tokens=20) for s in range(8)]
        story = await follow(client, bad)
        assert story.finish is not None
        assert story.finish.error is not None
        assert story.finish.error.code == "engine"
        stories = await asyncio.gather(*(follow(client, job) for job in good))
        assert [s.text for s in stories] == [expected_text(s, 20) for s in range(8)]


async def test_ending_of_a_refused_entry_survives_the_death_of_its_worker(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """A failed event that a worker left half-way is written by the next tick of another."""
    bad = await scripts.redis.xadd(scripts.keys.of("inbox"), {"job": b"garbage"})
    finish = '{"reason":"failed","error":{"code":"invalid_request","field":"job","message":"no"}}'
    await scripts.queue.reject(bad.decode(), "refused-1", finish, b"garbage")
    record = "refused-1"
    async with worker(pool, redis_url):
        story = await follow(client, record)
        assert story.reason == "failed"
        async with asyncio.timeout(PATIENCE_S):
            while await scripts.redis.zscore(scripts.keys.of("ending"), record) is not None:
                pass
