"""Garbage in the public inbox and in a lane in use: answered, kept, nobody disturbed."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from workers.null_workers import command, expected_text, follow, worker

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
    "lone-surrogate": (b'{"v":1,"prompt":"\\ud800"}', "job"),
    "50-MB-prompt": (b'{"v":1,"prompt":"' + b"x" * 50_000_000 + b'"}', "job"),
}


async def _dead_letters(scripts: Scripts) -> dict[str, dict[str, Any]]:
    """Read the dead-letter stream: finish by job id."""
    entries = await scripts.redis.xrange(scripts.keys.of("dead"))
    return {
        fields[b"job"].decode(): json.loads(fields[b"finish"]) | {"body": fields[b"body"]}
        for _, fields in entries
    }


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_in_the_inbox_is_answered_and_kept(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str, name: str
) -> None:
    """A raw entry that is no job gets its failed event and dead letter; its neighbours finish."""
    body, field = GARBAGE[name]
    inbox = scripts.keys.of("inbox")
    before = await scripts.redis.xadd(
        inbox, {"job": b'{"v":1,"prompt":"hello","seed":1,"max_tokens":5}'}
    )
    bad = await scripts.redis.xadd(inbox, {"job": body})
    after = await scripts.redis.xadd(
        inbox, {"job": b'{"v":1,"prompt":"hello","seed":2,"max_tokens":5}'}
    )
    async with worker(pool, redis_url):
        await until_known(client, f"raw-{after.decode()}")
        for entry, seed in ((before, 1), (after, 2)):
            story = await follow(client, f"raw-{entry.decode()}")
            assert story.text == expected_text(seed, 5)
        story = await follow(client, f"raw-{bad.decode()}")
    assert story.finish is not None
    assert story.reason == "failed"
    assert story.finish.error is not None
    assert story.finish.error.field is not None
    assert story.finish.error.field.split(".")[0] == field
    dead = await _dead_letters(scripts)
    assert list(dead) == [f"raw-{bad.decode()}"]
    assert len(dead[f"raw-{bad.decode()}"]["body"]) <= 65_536
    assert await scripts.redis.xlen(inbox) == 0


async def test_inbox_entry_without_a_job_field_is_refused(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """An entry with other fields only is answered under its own id."""
    bad = await scripts.redis.xadd(scripts.keys.of("inbox"), {"foo": "bar"})
    async with worker(pool, redis_url):
        await until_known(client, f"raw-{bad.decode()}")
        assert (await follow(client, f"raw-{bad.decode()}")).reason == "failed"


async def test_refused_body_that_names_an_id_is_answered_under_it(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """The sender who chose an id hears of the refusal there; a known job's id is left alone."""
    known = await client.submit("hello", seed=1, max_tokens=3)
    inbox = scripts.keys.of("inbox")
    await scripts.redis.xadd(inbox, {"job": b'{"v":1,"id":"mine-1","prompt":5}'})
    body = json.dumps({"v": 1, "id": known.job_id, "prompt": 5})
    stolen = await scripts.redis.xadd(inbox, {"job": body})
    async with worker(pool, redis_url):
        await until_known(client, f"raw-{stolen.decode()}")
        assert (await follow(client, "mine-1")).reason == "failed"
        assert (await follow(client, f"raw-{stolen.decode()}")).reason == "failed"
        assert (await follow(client, known.job_id)).text == expected_text(1, 3)


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


@pytest.mark.parametrize("name", LANE_GARBAGE)
async def test_garbage_in_a_lane_in_use_is_buried_and_the_lane_goes_on(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str, name: str
) -> None:
    """An entry written straight into a lane is dead-lettered; the jobs before and after it run."""
    first = await client.submit("hello", seed=1, max_tokens=4, tenant="acme")
    pairs = [part for pair in LANE_GARBAGE[name].items() for part in pair]
    await command(scripts, "XADD", scripts.keys.lane(1, "acme"), "*", *pairs)
    second = await client.submit("hello", seed=2, max_tokens=4, tenant="acme")
    async with worker(pool, redis_url):
        assert (await follow(client, first.job_id)).text == expected_text(1, 4)
        assert (await follow(client, second.job_id)).text == expected_text(2, 4)
    dead = await _dead_letters(scripts)
    assert len(dead) == 1
    assert next(iter(dead.values()))["error"]["code"] == "invalid_request"
    assert await scripts.redis.exists(scripts.keys.lane(1, "acme")) == 0


async def test_record_whose_request_was_ruined_fails_by_name(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """A request that is broken in its record, past every check of the queue, fails alone."""
    job = await client.submit("hello", max_tokens=4)
    good = await client.submit("hello", seed=2, max_tokens=4)
    body = b'{"v":1,"prompt":"x","max_tokens":-4}'
    await command(scripts, "HSET", scripts.keys.of("job", job.job_id), "request", body)
    async with worker(pool, redis_url):
        story = await follow(client, job.job_id)
        assert (await follow(client, good.job_id)).text == expected_text(2, 4)
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
        story = await follow(client, bad.job_id)
        assert story.finish is not None
        assert story.finish.error is not None
        assert story.finish.error.code == "engine"
        stories = await asyncio.gather(*(follow(client, job.job_id) for job in good))
        assert [s.text for s in stories] == [expected_text(s, 20) for s in range(8)]


async def until_known(client: AsyncClient, job_id: str) -> None:
    """Wait until the inbox entry became a job or a refusal."""
    async with asyncio.timeout(PATIENCE_S):
        while await client.scripts.queue.record(job_id) is None:
            pass


async def test_ending_of_a_refused_entry_survives_the_death_of_its_worker(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """A failed event that a worker left half-way is written by the next tick of another."""
    bad = await scripts.redis.xadd(scripts.keys.of("inbox"), {"job": b"garbage"})
    finish = '{"reason":"failed","error":{"code":"invalid_request","field":"job","message":"no"}}'
    await scripts.queue.reject(bad.decode(), "", finish, b"garbage")
    record = f"raw-{bad.decode()}"
    async with worker(pool, redis_url):
        story = await follow(client, record)
        assert story.reason == "failed"
        async with asyncio.timeout(PATIENCE_S):
            while await scripts.redis.zscore(scripts.keys.of("ending"), record) is not None:
                pass
