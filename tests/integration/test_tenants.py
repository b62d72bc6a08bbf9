"""Names belong to tenants: what one may call, read, cancel or time is its own."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from models.tiny_model import TinyModel
from patience import PATIENCE_S
from workers.null_workers import command, expected_text, follow, leaked_keys, worker

from tokenbus.producer import Client
from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.client.dead_letters import DeadLetters
from tokenbus.producer.errors import JobLost, JobUnknown
from tokenbus.worker.control.crons import Crons
from tokenbus.worker.control.timetable import Entry, Timetable

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.producer.scripts import Scripts

TENANTS = ("default", "shop", "a/b:c@d")
PAGE_SIZE = 16


async def test_one_id_is_a_job_of_each_tenant(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """Submits, streams, results and webhooks of equal ids never meet; channels are computed."""
    listener: Any = scripts.redis.pubsub(ignore_subscribe_messages=True)
    await listener.subscribe(f"{{tb:{pool}:0}}:tok:order")
    for seed, tenant in enumerate(TENANTS):
        fields: dict[str, Any] = {"seed": seed, "max_tokens": 8, "id": "order", "tenant": tenant}
        fields |= {"callback_url": f"https://shop.example/{seed}", "idempotency_key": "one"}
        assert (await client.submit("hello", **fields)).created
        assert not (await client.submit("hello", **fields)).created
    async with worker(pool, redis_url):
        for seed, tenant in enumerate(TENANTS):
            story = await follow(client, "order", tenant=tenant)
            assert story.text == expected_text(seed, 8)
            result = await client.result("order", tenant=tenant)
            assert (result.job_id, result.tenant) == ("order", tenant)
            assert result.text == expected_text(seed, 8)
            # The completion comes after the end.
            async with asyncio.timeout(PATIENCE_S):
                while (hook := await client.webhook("order", tenant=tenant)) is None:
                    pass
            assert (hook.job_id, hook.tenant, hook.url[-1]) == ("order", tenant, str(seed))
    async with asyncio.timeout(PATIENCE_S):
        while (message := await listener.get_message(timeout=1)) is None:
            pass
    wire = json.loads(message["data"])
    assert (wire["v"], wire["job"], wire.get("tenant")) == (2, "order", None)
    await listener.aclose()
    assert {key for key in await leaked_keys(scripts) if ":hook" not in key} == set()


async def test_job_of_another_tenant_is_as_unknown_as_none(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """Waiting, running or done, and whatever is asked: the answers tell nothing apart."""
    job = await client.submit("hello", seed=1, max_tokens=400, id="mine", tenant="shop")

    async def answers(job_id: str, tenant: str) -> list[str]:
        told = []
        for ask in (
            lambda: client.result(job_id, tenant=tenant),
            lambda: client.cancel(job_id, tenant=tenant),
            lambda: anext(client.stream(job_id, tenant=tenant)),
            lambda: anext(client.stream(job_id, 3, tenant=tenant)),
        ):
            with pytest.raises((JobUnknown, JobLost)) as caught:
                await ask()
            told.append(f"{type(caught.value).__name__} {caught.value}".replace(job_id, "ID"))
        return [*told, repr(await client.webhook(job_id, tenant=tenant))]

    async def check() -> None:
        none = await answers("none", "default")
        for job_id, tenant in (
            ("mine", "default"),
            ("mine", "other"),
            ("mine@shop", "default"),
            ("mine@shop", "other"),
            ("mine", ""),
            ("", "shop"),
        ):
            assert await answers(job_id, tenant) == none or not job_id, (job_id, tenant)

    await check()
    async with worker(pool, redis_url, null_tokens_per_s=2000):
        async with asyncio.timeout(PATIENCE_S):
            async for _ in client.stream(job):
                break
        await check()
        assert (await follow(client, job)).text == expected_text(1, 400)
        await check()


def test_blocking_client_names_tenants_too(redis_url: str, pool: str) -> None:
    """The same calls without an event loop."""
    with Client.connect(redis_url, pool) as blocking:
        job = blocking.submit("hello", max_tokens=4, id="mine", tenant="shop")
        assert job.tenant == "shop"
        with pytest.raises(JobUnknown):
            blocking.result("mine")
        with pytest.raises(JobUnknown):
            next(iter(blocking.stream("mine")))
        with pytest.raises(JobUnknown):
            blocking.cancel("mine", "other")
        assert blocking.webhook("mine", "shop") is None
        assert blocking.cancel(job)
        [event] = blocking.stream("mine", tenant="shop")
        assert event.finish is not None
        assert (event.tenant, event.finish.reason) == ("shop", "cancelled")


async def test_forged_events_of_other_jobs_are_not_ones_own(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """A message that names another id or tenant is left out by the readers of a channel."""
    job = await client.submit("hello", seed=1, max_tokens=30, id="mine", tenant="shop")
    end = {"v": 2, "epoch": 9, "choice": 0, "from": 1, "to": 0, "text": "", "ids": [], "ends": []}
    end |= {"finish": {"reason": "stop"}}
    names = [{"job": "mine"}, {"job": "mine", "tenant": "other"}, {"job": "x", "tenant": "shop"}]
    # Who submitted it reads a channel of its own.
    async with await AsyncClient.connect(redis_url, pool=pool) as other:
        reading = asyncio.create_task(follow(other, job))
        async with asyncio.timeout(PATIENCE_S):
            while not await command(client.scripts, "PUBLISH", job.channel, "{}"):
                pass
        for name in names:
            await command(client.scripts, "PUBLISH", job.channel, json.dumps(end | name))
        async with worker(pool, redis_url):
            assert (await reading).text == expected_text(1, 30)


async def test_name_of_a_cron_is_taken_by_nobody_else(
    client: AsyncClient, redis_url: str, pool: str, tmp_path: Path
) -> None:
    """Ids that look like a cron's are free to take and take nothing: its own no door lets in."""
    entry = Entry.model_validate(
        {"name": "n", "at": {"hour": 3}, "request": {"prompt": "x", "seed": 7, "max_tokens": 4}}
    )
    guessed = [f"cron-n-19700101T00000{s}Z-1" for s in range(3)]
    for job_id in guessed:
        await client.submit("mine", id=job_id, max_tokens=1)
    real = "cron~n~19700101T000001Z~1"
    with pytest.raises(ValueError, match=r"^id: "):
        await client.submit("mine", id=real)
    refused: Any = {"job": json.dumps({"id": real, "prompt": "mine"}), "reply": "r" * 16}
    await client.scripts.redis.xadd(client.scripts.keys.of("inbox"), refused)
    crons = Crons(client, [], table=Timetable(), folder=tmp_path)
    async with worker(pool, redis_url):
        replies = client.scripts.keys.of("replies", "r" * 16)
        _, told = await command(client.scripts, "BLPOP", replies, PATIENCE_S)
        assert json.loads(told)["finish"]["error"]["field"] == "id"
        await crons._entry(entry).coroutine({"job_id": "table:n:1000"})
        assert (await follow(client, real)).text == expected_text(7, 4)


async def test_tick_that_version_1_has_submitted_does_not_run_twice(
    client: AsyncClient, tmp_path: Path
) -> None:
    """A service that was replaced before it took the tick left jobs under its own names."""
    (tmp_path / "texts.jsonl").write_text('{"prompt":"a"}\n{"prompt":"b","tenant":"shop"}\n')
    entry = Entry.model_validate({"name": "n", "at": {"hour": 3}, "requests": "texts.jsonl"})
    for number, request in enumerate(entry.build(tmp_path), 1):
        job_id = f"cron-n-19700101T000001Z-{number}"
        job = await client.submit(request.model_copy(update={"id": job_id}))
        key = client.scripts.keys.of("job", job.channel.partition(":tok:")[2])
        await command(client.scripts, "HDEL", key, "v")
        plain = client.scripts.keys.of("job", job_id)
        if key != plain:
            await command(client.scripts, "RENAME", key, plain)
    crons = Crons(client, [], table=Timetable(), folder=tmp_path)
    await crons._entry(entry).coroutine({"job_id": "table:n:1000"})
    assert (await client.scripts.lease.load())["jobs"] == 2
    await crons._entry(entry).coroutine({"job_id": "table:n:2000"})
    assert (await client.scripts.lease.load())["jobs"] == 4


async def test_dead_letters_name_tenant_and_id_apart(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """Two tenants' failures under one id are two letters, found and sent again by tenant."""
    for tenant in ("shop", "firm"):
        job = await client.submit("hello", id="bad", tenant=tenant, max_tokens=4)
        key = scripts.keys.of("job", f"bad@{tenant}")
        body = json.dumps({"v": 2, "prompt": "x", "tenant": tenant, "max_tokens": -4})
        await command(scripts, "HSET", key, "request", body)
    async with worker(pool, redis_url):
        for tenant in ("shop", "firm"):
            assert (await follow(client, "bad", tenant=tenant)).reason == "failed"
        async with asyncio.timeout(PATIENCE_S):
            while await scripts.redis.xlen(scripts.keys.of("dead")) < 2:
                pass
    letters = DeadLetters(client)
    found = [letter async for letter in letters.newest()]
    assert {(letter.job_id, letter.tenant) for letter in found} == {
        ("bad", "shop"),
        ("bad", "firm"),
    }
    assert (await letters.find("bad", "firm")).tenant == "firm"
    assert job.tenant == "firm"
    assert await letters.delete(found) == 2
    assert await command(scripts, "HMGET", scripts.keys.of("letters"), "count", "bytes") == [
        b"0",
        b"0",
    ]


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_guessed_cache_group_shows_no_hit(
    client: AsyncClient, redis_url: str, pool: str, tmp_path: Path
) -> None:
    """Cached tokens are told to those of a group's secret or list, and to nobody who guesses."""
    settings: dict[str, Any] = {
        "engine": "paged",
        "model": str(TinyModel(tmp_path).folder),
        "dtype": "float32",
        "device": "cpu",
        "num_threads": 1,
        "num_pages": 256,
        "page_size": PAGE_SIZE,
        "cache_groups": {"listed": ["a", "b"]},
    }
    prompt = [3 + number % 90 for number in range(20 * PAGE_SIZE)]
    known, guessed = "known to them alone", "guessed by a third"

    async def cached(tenant: str, **fields: Any) -> int:
        job = await client.submit(token_ids=prompt, max_tokens=2, tenant=tenant, **fields)
        return (await client.result(job, timeout_s=PATIENCE_S)).finish.usage.cached_tokens

    async with worker(pool, redis_url, **settings):
        promo = {"cache_group": "promo", "cache_secret": known}
        assert await cached("a", **promo) == 0
        hit = await cached("b", **promo)
        assert hit >= len(prompt) - 2 * PAGE_SIZE
        assert await cached("c", cache_group="promo") == 0
        assert await cached("c", cache_group="promo", cache_secret=guessed) == 0
        assert await cached("c", cache_group="other", cache_secret=known) == 0
        assert await cached("d") == 0
        assert await cached("a", cache_group="listed") == 0
        assert await cached("b", cache_group="listed") == hit
        assert await cached("c", cache_group="listed") == 0
        assert await cached("b", cache_group="listed", v=1) == 0
        assert await cached("a", cache_group="own") == 0
        assert await cached("a", cache_group="own") == hit
