"""Who meets whom while version 2 replaces version 1, with the real programs of both.

The table is in docs/protocol.md; tests/integration/test_versions.py has its short form.
"""

from __future__ import annotations

import asyncio
import json
import signal
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from workers.earlier_release import VERSION_1, VERSION_2, EarlierRelease
from workers.null_workers import command, expected_text, follow, worker

from tokenbus.producer.errors import JobUnknown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.replies import JobState

pytestmark = pytest.mark.slow
LEASE = {"lease_ttl_s": 1, "renew_interval_s": 0.3}
CHAT: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "boolean"}}}
# Requests in the spellings of docs/requests.md, by whether the first readers of version 2 take what
# is stored of them.
REQUESTS: dict[str, tuple[dict[str, Any], bool]] = {
    "plain": ({"prompt": "x"}, True),
    "parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, True),
    "developer": ({"messages": [{"role": "developer", "content": "d"}, *CHAT]}, True),
    "tools": ({"messages": CHAT, "tools": [TOOL], "n": 2}, True),
    "named-tool": (
        {
            "messages": CHAT,
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "look"}},
            "parallel_tool_calls": False,
        },
        True,
    ),
    "results": (
        {
            "messages": [
                *CHAT,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c", "content": "r"},
            ]
        },
        True,
    ),
    "response-format": ({"prompt": "x", "response_format": SCHEMA}, True),
    "json-object": ({"prompt": "x", "response_format": {"type": "json_object"}}, True),
    "model": ({"prompt": "x", "model": "null", "user": "u"}, True),
    "stop": ({"prompt": "x", "stop": "zz", "top_k": -1, "logit_bias": {"300": 1}}, True),
    "logprobs": ({"prompt": "x", "logprobs": True, "top_logprobs": 2}, True),
    "defaults": ({"prompt": "x", "temperature": 1.0, "top_p": 1.0}, True),
    "budget": ({"messages": CHAT, "max_reasoning_tokens": 5}, False),
    "thinking": ({"messages": CHAT, "enable_thinking": False}, False),
    "continued": (
        {
            "messages": [*CHAT, {"role": "assistant", "content": "He"}],
            "continue_final_message": True,
        },
        False,
    ),
    "no-turn": ({"messages": CHAT, "add_generation_prompt": False}, False),
    "scoring": ({"prompt": "x", "max_tokens": 0, "prompt_logprobs": 0}, False),
}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> EarlierRelease:
    """Unpack the release that spoke version 1."""
    return EarlierRelease(tmp_path_factory.mktemp("earlier"))


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> EarlierRelease:
    """Unpack a release that spoke version 2 before requests had more fields."""
    return EarlierRelease(tmp_path_factory.mktemp("before"), VERSION_2)


async def text_of(earlier: EarlierRelease, url: str, pool: str, job_id: str) -> Any:
    """Read a result through the earlier client."""
    return await earlier.call(url, pool, "result", job_id, PATIENCE_S)


async def until_known(look: Callable[[], Awaitable[Any]]) -> None:
    """Wait until a process of another release has left something."""
    async with asyncio.timeout(2 * PATIENCE_S):
        while not await look():  # noqa: ASYNC110 -- another process writes it
            await asyncio.sleep(0.05)


async def state_of(scripts: Scripts, address: str) -> JobState:
    """Read where a record stands."""
    record = await scripts.queue.record(address)
    assert record is not None
    return record.state


async def test_new_jobs_wait_for_a_new_worker(
    client: AsyncClient, earlier: EarlierRelease, redis_url: str, pool: str
) -> None:
    """A worker of version 1 serves its own jobs and touches nothing of version 2."""
    fields: dict[str, Any] = {"prompt": "hello", "seed": 1, "max_tokens": 6}
    jobs = [
        await client.submit(**fields),
        await client.submit(**fields, tenant="shop", id="a"),
        await client.submit(**fields, not_before_s=0.1, tenant="shop"),
        await client.submit(**fields, deadline_s=0.1),
    ]
    inbox = client.scripts.keys.of("inbox2")
    secret = uuid.uuid4().hex
    body = json.dumps(fields | {"v": 2})
    await client.scripts.redis.xadd(inbox, {"job": body, "reply": secret})
    async with earlier.worker(redis_url, pool, **LEASE):
        old = await earlier.call(redis_url, pool, "submit", fields | {"tenant": "shop"})
        text = await text_of(earlier, redis_url, pool, old[0])
        assert text == [expected_text(1, 6), "length"]
        # Each is started by a tick, and every tick is followed by a scan.
        for seed in (2, 3):
            delayed = fields | {"tenant": "shop", "seed": seed, "not_before_s": 0.2}
            old = await earlier.call(redis_url, pool, "submit", delayed)
            text = await text_of(earlier, redis_url, pool, old[0])
            assert text == [expected_text(seed, 6), "length"]
        for job, state in zip(jobs, ("waiting", "waiting", "delayed", "waiting"), strict=True):
            address = job.channel.partition(":tok:")[2]
            assert await state_of(client.scripts, address) == state
        assert await client.scripts.redis.xlen(inbox) == 1
    async with worker(pool, redis_url, **LEASE):
        for job in jobs[:3]:
            assert (await follow(client, job)).text == expected_text(1, 6)
        assert (await follow(client, jobs[3])).reason == "expired"
        _, told = await command(
            client.scripts, "BLPOP", client.scripts.keys.of("replies", secret), PATIENCE_S
        )
        assert (await follow(client, json.loads(told)["job"])).text == expected_text(1, 6)


async def test_new_body_at_an_old_worker_alone_is_refused_by_its_version(
    client: AsyncClient, earlier: EarlierRelease, redis_url: str, pool: str
) -> None:
    """The first inbox is everybody's: the event names `v` and 1, the letter's body says 2."""
    inbox = client.scripts.keys.of("inbox")
    await client.scripts.redis.xadd(inbox, {"job": '{"v":2,"id":"b","prompt":"x"}'})
    async with earlier.worker(redis_url, pool):
        await until_known(lambda: client.scripts.queue.record("b"))
        story = await follow(client, "b")
    assert story.finish is not None
    assert story.finish.error is not None
    assert (story.finish.error.field, story.reason) == ("v", "failed")
    assert story.finish.error.message == "this release speaks wire version 1"


async def test_new_workers_drain_the_inbox_before_old_ones(
    client: AsyncClient, earlier: EarlierRelease, redis_url: str, pool: str
) -> None:
    """Beside a worker of version 2, one of version 1 refuses no body that it cannot read."""
    inbox = client.scripts.keys.of("inbox")
    async with earlier.worker(redis_url, pool), worker(pool, redis_url):
        members = client.scripts.keys.of("workers1")
        await until_known(lambda: command(client.scripts, "SCARD", members))
        secrets = [uuid.uuid4().hex for _ in range(30)]
        for seed, secret in enumerate(secrets):
            body = json.dumps({"v": 2, "prompt": "x", "seed": seed, "max_tokens": 3})
            await client.scripts.redis.xadd(inbox, {"job": body, "reply": secret})
        for seed, secret in enumerate(secrets):
            key = client.scripts.keys.of("replies", secret)
            _, told = await command(client.scripts, "BLPOP", key, PATIENCE_S)
            assert (await follow(client, json.loads(told)["job"])).text == expected_text(seed, 3)


async def test_old_client_is_served_by_new_workers(
    client: AsyncClient, earlier: EarlierRelease, redis_url: str, pool: str
) -> None:
    """Its jobs keep version 1 and their names; its tenant finds them by tenant and id."""
    heard: Any = client.scripts.redis.pubsub(ignore_subscribe_messages=True)
    await heard.subscribe(client.scripts.keys.channel("mine"))
    fields: dict[str, Any] = {
        "prompt": "hello",
        "seed": 4,
        "max_tokens": 9,
        "tenant": "shop",
        "id": "mine",
    }
    assert await earlier.call(redis_url, pool, "submit", fields) == ["mine", True]
    again = await client.submit(**fields)
    assert not again.created
    async with worker(pool, redis_url):
        assert await text_of(earlier, redis_url, pool, "mine") == [expected_text(4, 9), "length"]
        assert (await follow(client, "mine", tenant="shop")).text == expected_text(4, 9)
        assert (await client.result(again)).version == 1
        for tenant in ("default", "other"):
            with pytest.raises(JobUnknown):
                await client.result("mine", tenant=tenant)
            with pytest.raises(JobUnknown):
                await client.cancel("mine", tenant=tenant)
    async with asyncio.timeout(PATIENCE_S):
        while (message := await heard.get_message(timeout=1)) is None:
            pass
    wire = json.loads(message["data"])
    assert (wire["v"], wire["job"], wire.get("tenant")) == (1, "mine", None)
    await heard.aclose()


async def test_old_client_reads_a_new_job_of_the_default_tenant(
    client: AsyncClient, earlier: EarlierRelease, redis_url: str, pool: str
) -> None:
    """It understands no event of it, and reads it whole from log or result all the same."""
    job = await client.submit("hello", seed=5, max_tokens=12, id="new")
    hidden = await client.submit("hello", seed=5, max_tokens=12, id="hidden", tenant="shop")
    reading = asyncio.create_task(text_of(earlier, redis_url, pool, "new"))
    async with worker(pool, redis_url):
        assert await reading == [expected_text(5, 12), "length"]
        await client.result(hidden)
        fields = {"prompt": "hello", "seed": 5, "max_tokens": 12, "id": "new"}
        assert await earlier.call(redis_url, pool, "submit", fields) == ["new", False]
        changed = await earlier.call(redis_url, pool, "submit", fields | {"seed": 6})
        assert changed["error"] == "IdempotencyConflict"
        unknown = await earlier.call(redis_url, pool, "result", "hidden", 1)
        assert unknown["error"] == "JobUnknown"
        assert await earlier.call(redis_url, pool, "cancel", "new") is False
    assert (await client.result(job)).version == 2


async def test_old_client_cancels_a_new_job_of_the_default_tenant(
    client: AsyncClient, earlier: EarlierRelease, redis_url: str, pool: str
) -> None:
    """The job ends once, the queue counts it no more, and its lane goes with the next pull."""
    job = await client.submit("hello", seed=5, max_tokens=12, id="new")
    assert await earlier.call(redis_url, pool, "cancel", "new") is True
    assert (await follow(client, job)).reason == "cancelled"
    assert (await client.scripts.lease.load())["jobs"] == 0
    async with worker(pool, redis_url):
        after = await client.submit("hello", seed=6, max_tokens=3)
        assert (await follow(client, after)).text == expected_text(6, 3)


async def test_killed_old_workers_are_reaped_by_new_ones_in_a_mixed_pool(
    client: AsyncClient, earlier: EarlierRelease, redis_url: str, pool: str
) -> None:
    """Both kinds of clients and workers at once, the old workers killed midway: all end whole."""
    old: list[dict[str, Any]] = [
        {"prompt": "x", "seed": s, "max_tokens": 60, "tenant": f"t{s % 3}"} for s in range(12)
    ]
    accepted = [await earlier.call(redis_url, pool, "submit", fields) for fields in old]
    slow = {"null_tokens_per_s": 30} | LEASE
    async with earlier.worker(redis_url, pool, **slow) as doomed:
        await until_known(lambda: client.scripts.log.events(accepted[0][0]))
        async with worker(pool, redis_url, **LEASE):
            new = [
                await client.submit("x", seed=100 + s, max_tokens=40, tenant=f"t{s % 3}")
                for s in range(12)
            ]
            doomed.send(signal.SIGKILL)
            for fields, (job_id, _) in zip(old, accepted, strict=True):
                story = await follow(client, job_id, tenant=fields["tenant"])
                assert story.text == expected_text(fields["seed"], 60)
            for number, job in enumerate(new):
                assert (await follow(client, job)).text == expected_text(100 + number, 40)
            versions = {(await client.result(job)).version for job in new}
            assert versions == {2}


async def test_requests_of_a_new_client_at_a_worker_of_the_first_version_2(
    client: AsyncClient, before: EarlierRelease, redis_url: str, pool: str
) -> None:
    """Each is finished, or refused in a sentence that names both versions."""
    async with before.worker(redis_url, pool):
        jobs = {
            name: await client.submit(**{"max_tokens": 3, "seed": 1, **given})
            for name, (given, _) in REQUESTS.items()
        }
        for name, job in jobs.items():
            story = await follow(client, job)
            if REQUESTS[name][1]:
                assert (story.reason, story.text) == ("length", expected_text(1, 3)), name
                continue
            assert story.finish is not None
            error = story.finish.error
            assert error is not None, name
            assert (error.field, error.message) == (
                "v",
                "the request speaks wire version 3; this release speaks 1 and 2",
            ), name


async def test_bodies_of_new_clients_at_a_worker_of_version_1(
    client: AsyncClient, earlier: EarlierRelease, redis_url: str, pool: str
) -> None:
    """In the inbox that it reads each is refused: it speaks version 1, and the body says 2."""
    inbox = client.scripts.keys.of("inbox")
    for name, (given, _) in REQUESTS.items():
        body = {"v": 2, "id": name, "max_tokens": 3, "seed": 1, **given}
        await client.scripts.redis.xadd(inbox, {"job": json.dumps(body)})
    async with earlier.worker(redis_url, pool):
        for name in REQUESTS:
            await until_known(lambda name=name: client.scripts.queue.record(name))  # type: ignore[misc]
            story = await follow(client, name)
            assert story.finish is not None
            assert story.finish.error is not None, name
            assert (story.finish.error.field, story.finish.error.message) == (
                "v",
                "this release speaks wire version 1",
            ), name


@pytest.mark.parametrize("release", [VERSION_1, VERSION_2], ids=["version-1", "version-2"])
async def test_requests_of_earlier_clients_are_finished(
    client: AsyncClient,
    earlier: EarlierRelease,
    before: EarlierRelease,
    redis_url: str,
    pool: str,
    release: Any,
) -> None:
    """What such a client takes a worker of this release answers; the rest its own door refuses."""
    owner = earlier if release is VERSION_1 else before
    num_answered = 0
    async with worker(pool, redis_url):
        for name, (given, _) in REQUESTS.items():
            fields = {"max_tokens": 3, "seed": 1, **given}
            accepted = await owner.call(redis_url, pool, "submit", fields)
            if isinstance(accepted, dict):
                assert accepted["error"] == "RequestInvalid", name
                continue
            text = await text_of(owner, redis_url, pool, accepted[0])
            assert text == [expected_text(1, 3), "length"], name
            num_answered += 1
    assert num_answered >= 4
    assert (await client.scripts.lease.load())["jobs"] == 0
