"""API keys: what one opens is closed to every other, and to itself once it was revoked."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from gateways.doors import door, forget_deployment, frames_of
from patience import PATIENCE_S, until_within
from pydantic import SecretStr
from workers.null_workers import worker

from tokenbus.producer.commands.cli import main
from tokenbus.producer.contract import deployment_keys
from tokenbus.producer.contract.cache_scope import cache_scope
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.errors import ClientSettingsInvalid
from tokenbus.producer.gateway.access.api_keys import ApiKeys, KeyLimits
from tokenbus.producer.gateway.access.caller import Caller
from tokenbus.producer.gateway.access.key_ring import KeyRing, caller_of
from tokenbus.producer.gateway.access.shares import Shares
from tokenbus.producer.gateway.settings import GatewaySettings
from tokenbus.producer.gateway.wire.api_error import ApiError
from tokenbus.producer.server.connection import make_redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from tokenbus.producer.server.embedded import EmbeddedServer

_COMMAND = (
    "import sys; from tokenbus.producer.commands.cli import main; sys.exit(main(sys.argv[1:]))"
)
BODY: dict[str, Any] = {"prompt": "hi", "max_tokens": 3, "seed": 1}


@pytest.fixture
async def redis(private_server: EmbeddedServer) -> AsyncIterator[Redis]:
    """Give a connection of the test's own; keys of the deployment are deleted afterwards."""
    made = make_redis(private_server.url)
    yield made
    await forget_deployment(made)
    await made.aclose()


def tokenbus(url: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a command as an operator does."""
    command = [sys.executable, "-P", "-c", _COMMAND, *args, "--redis", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


async def test_key_is_kept_as_a_digest_and_shown_once(redis: Redis) -> None:
    """Nothing that is stored opens anything; the list does not have the key."""
    keys = ApiKeys(redis)
    key, record = await keys.create(tenant="shop", weight=2.0, limits=KeyLimits(tokens_per_month=9))
    stored = [await redis.dump(name) async for name in redis.scan_iter("{tokenbus}:*")]
    secret = key.rpartition("-")[2].encode()
    assert not any(secret in (value or b"") for value in stored)
    assert await keys.records() == [record]
    assert key not in repr(record)
    assert record.digest not in repr(record)


async def test_wrong_keys_open_nothing(redis: Redis) -> None:
    """Neither another secret of a known id, nor a part of a key, nor a digest."""
    keys = ApiKeys(redis)
    key, record = await keys.create()
    ring = KeyRing(redis, (SecretStr("given-key-1"),), is_on=True)
    assert (await ring.caller_of(f"Bearer {key}")).key_id == record.key_id
    assert (await ring.caller_of("bearer given-key-1")).key_id != record.key_id
    wrong = [
        None, "", "Bearer", "Bearer ", key, f"Basic {key}", f"Bearer {key[:-1]}", f"Bearer {key}x",
        f"Bearer {record.digest}", f"Bearer tb-{record.key_id}-", "Bearer given-key-2",
        f"Bearer tb-{'0' * 16}-{key[-43:]}", "Bearer \ud800",
    ]  # fmt: skip
    for header in wrong:
        with pytest.raises(ApiError) as met:
            await ring.caller_of(header)
        assert met.value.status == 401
    await keys.revoke(record.key_id)
    with pytest.raises(ApiError):
        await KeyRing(redis, (), is_on=True).caller_of(f"Bearer {key}")


async def test_open_door_is_for_the_loopback_alone(redis: Redis) -> None:
    """Where others reach the door it asks for keys, whatever else is said."""
    del redis
    with pytest.raises(ClientSettingsInvalid, match="loopback"):
        GatewaySettings.load(gateway_auth="off", gateway_host="0.0.0.0")  # noqa: S104
    with pytest.raises(ClientSettingsInvalid, match="letters"):
        GatewaySettings.load(gateway_api_keys=("short",))


async def test_users_share_what_the_tenant_has(redis: Redis) -> None:
    """A user is a part of the key's tenant, with a part of its weight; without keys, a tenant."""
    _, record = await ApiKeys(redis).create(tenant="shop", weight=3.0)
    who, shares = caller_of(record), Shares(redis)
    assert who.for_user(None) is who
    users = [who.for_user(name) for name in ("ann", "bob", "cid")]
    assert {user.job_tenant.partition("/")[0] for user in users} == {"shop"}
    assert len({user.job_tenant for user in users}) == 3
    weights = [await shares.weight(user) for user in users]
    assert weights == [3.0, 1.5, 1.0]
    assert await shares.weight(who) == 3.0
    assert Caller().for_user("ann").job_tenant == "ann"


async def test_two_keys_know_nothing_of_each_other(
    private_server: EmbeddedServer, pool: str, redis: Redis
) -> None:
    """To another key, of the same tenant too, what one has is as if it was not there."""
    keys, url = ApiKeys(redis), private_server.url
    mine, _ = await keys.create(tenant="shop")
    other, _ = await keys.create(tenant="shop")
    async with (
        worker(pool, url, lease_ttl_s=60),
        door(url, pool, gateway_auth="auto") as running,
    ):
        assert (await running.post("/v1/completions", BODY)).status == 401
        assert (await running.get("/v1/models")).status == 401
        assert (await running.get("/healthz")).status == 200
        told = await running.post("/v1/completions", {**BODY, "stream": True}, mine)
        job_id = told.headers["X-Tokenbus-Job-Id"]
        last_id = {"Last_Event_ID": str(told.frames[0].id)}
        waits = await running.post("/v1/jobs", {**BODY, "not_before_s": 3000, "user": "ann"}, mine)
        paths = [
            ("GET", f"/v1/jobs/{job_id}"),
            ("GET", f"/v1/jobs/{job_id}/stream"),
            ("POST", f"/v1/jobs/{waits.json['id']}/cancel"),
            ("DELETE", f"/v1/jobs/{waits.json['id']}"),
        ]
        never = job_id[:-4] + "0000"
        for method, path in paths:
            seen = await running.ask(method, path, None, other)
            unknown = await running.ask(method, path.replace(job_id, never), None, other)
            assert (seen.status, unknown.status) == (404, 404)
            assert seen.error["code"] == unknown.error["code"]
        resumed = await running.post("/v1/completions", {**BODY, "stream": True}, other, **last_id)
        assert resumed.status == 404
        listed = [
            [job["id"] for job in (await running.get("/v1/jobs", key)).json["data"]]
            for key in (mine, other)
        ]
        assert listed == [[waits.json["id"]], []]
        same = {"Idempotency_Key": "k"}
        first = await running.post("/v1/jobs", BODY, mine, **same)
        assert (await running.post("/v1/jobs", BODY, mine, **same)).json["id"] == first.json["id"]
        assert (await running.post("/v1/jobs", BODY, other, **same)).json["id"] != first.json["id"]
        clash = await running.post("/v1/jobs", {**BODY, "max_tokens": 4}, mine, **same)
        assert (clash.status, clash.error["code"]) == (409, "idempotency_conflict")


async def test_cached_prompts_are_shared_within_a_key(redis: Redis) -> None:
    """Users of a key share pages, other keys of the tenant do not; a cache key sets some apart."""
    keys = ApiKeys(redis)
    one, other = [caller_of((await keys.create(tenant="shop"))[1]) for _ in range(2)]

    def scope(who: Caller, cache_key: str | None = None) -> str:
        fields = {"prompt": "hi", "tenant": who.job_tenant, **who.cache_fields(cache_key)}
        return cache_scope(JobRequest.of_fields(fields))

    assert scope(one) == scope(one.for_user("ann")) == scope(one.for_user("bob"))
    assert scope(one, "a") == scope(one.for_user("ann"), "a")
    apart = [scope(one), scope(one, "a"), scope(one, "b"), scope(other), scope(other, "a")]
    # Nobody who knows a key's id and tenant gets there by fields of a request.
    guessed = JobRequest.of_fields(
        {"prompt": "hi", "tenant": "shop", "cache_group": one.cache_group}
    )
    assert len({*apart, cache_scope(guessed), scope(Caller()), scope(Caller(), "a")}) == 8


async def test_revoked_key_ends_its_streams_and_jobs(
    private_server: EmbeddedServer, pool: str, redis: Redis
) -> None:
    """Within two seconds: no new request, no open stream, no job."""
    url, keys = private_server.url, ApiKeys(redis)
    key, record = await keys.create(tenant="shop")
    async with (
        worker(pool, url, null_tokens_per_s=20.0, lease_ttl_s=60),
        door(url, pool, gateway_auth="keys") as running,
    ):
        assert running.gateway is not None
        streams = running.gateway.streams
        long = {**BODY, "max_tokens": 4000}
        job = await running.post("/v1/jobs", {**long, "user": "ann"}, key)
        await running.post("/v1/jobs", {**BODY, "not_before_s": 3000, "user": "bob"}, key)
        begun = asyncio.Event()

        async def read() -> list[Any]:
            frames = []
            async with running.open("POST", "/v1/completions", {**long, "stream": True}, key) as r:
                async for frame in frames_of(r):
                    if frame.data:
                        frames.append(frame)
                        begun.set()
            return frames

        reading = asyncio.create_task(read())
        at_once = asyncio.create_task(running.post("/v1/completions", long, key))
        asked = {"input": "hi", "max_output_tokens": 4000, "stream": True}
        response = asyncio.create_task(running.post("/v1/responses", asked, key))
        async with asyncio.timeout(PATIENCE_S):
            await begun.wait()
            await until_within(lambda: len(streams) == 3, PATIENCE_S)
        revoking = await asyncio.to_thread(tokenbus, url, "keys", "revoke", record.key_id)
        assert revoking.returncode == 0, revoking.stderr
        await until_within(lambda: all(each.done() for each in (reading, at_once, response)), 2.0)
        assert at_once.result().error["code"] == "invalid_api_key"
        assert response.result().data_frames[-1].json["code"] == "invalid_api_key"
        *_, error, done = reading.result()
        assert error.json["error"]["code"] == "invalid_api_key"
        assert done.data == "[DONE]"
        assert (await running.post("/v1/completions", BODY, key)).status == 401
        client = await running.gateway.models.client(pool)
        share = f"shop/{job.json['id'].partition('-')[2][18:20]}"
        async with asyncio.timeout(PATIENCE_S):
            events = [event async for event in client.stream(job.json["id"], tenant=share)]
        assert events[-1].finish is not None
        assert events[-1].finish.reason == "cancelled"
        assert (await client.list_jobs()).jobs == ()


async def test_limits_of_a_key_are_kept(
    private_server: EmbeddedServer, pool: str, redis: Redis
) -> None:
    """What a key may do less than others is refused, with the time of the next try."""
    url, keys = private_server.url, ApiKeys(redis)
    few, _ = await keys.create(limits=KeyLimits(requests_per_month=1))
    short, _ = await keys.create(limits=KeyLimits(tokens_per_minute=20), priorities=(2,))
    closed, _ = await keys.create(pools=("another",))
    async with (
        worker(pool, url, lease_ttl_s=60),
        door(url, pool, gateway_auth="keys") as running,
    ):
        assert (await running.post("/v1/completions", BODY, few)).status == 200
        told = await running.post("/v1/completions", BODY, few)
        assert (told.status, told.error["code"]) == (429, "rate_limit_exceeded")
        assert int(told.headers["Retry-After"]) > 0
        told = await running.post("/v1/completions", {**BODY, "max_tokens": 500}, short)
        assert told.status == 429
        # What was refused for what it asks has used nothing: one alone may come to most of it.
        unknown = {"prompt": [99_999], "max_tokens": 16}
        for asked in ({"stream": True}, {}):
            wrong = await running.post("/v1/completions", {**unknown, **asked}, short)
            assert (wrong.status, wrong.error["param"]) == (400, "prompt")
        # What was not used is given back: five times 4 + 1 tokens were asked for, 4 + 1 used.
        for _ in range(3):
            body = {**BODY, "max_tokens": 4, "stream": True}
            assert (await running.post("/v1/completions", body, short)).status == 200
        told = await running.post("/v1/completions", {**BODY, "priority": 0}, short)
        assert (told.status, told.error["param"]) == (403, "priority")
        told = await running.post("/v1/completions", {**BODY, "service_tier": "priority"}, short)
        assert told.status == 429 or told.json["service_tier"] == "flex"
        told = await running.post("/v1/completions", BODY, closed)
        assert (told.status, told.error["code"]) == (403, "model_not_allowed")
        assert (await running.get("/v1/models", closed)).json["data"] == []


async def test_key_pays_for_what_its_jobs_have_used(
    private_server: EmbeddedServer, pool: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads them, if anybody: all is counted until they end, and then what they came to."""
    monkeypatch.setattr("tokenbus.producer.gateway.access.limits.LOOK_S", 0.05)
    url = private_server.url
    key, record = await ApiKeys(redis).create(limits=KeyLimits(tokens_per_month=1000))

    async def used() -> int:
        names = [each async for each in redis.scan_iter(f"*key_use:{record.key_id}:tokens:*")]
        return sum([int(await redis.get(name) or 0) for name in names])

    async def settled() -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await redis.exists(deployment_keys.open_use()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async with (
        worker(pool, url, lease_ttl_s=60, null_tokens_per_s=100.0),
        door(url, pool, gateway_auth="auto") as running,
    ):
        late = {**BODY, "max_tokens": 200, "not_before_s": 3000}
        for _ in range(2):
            waits = await running.post("/v1/jobs", late, key, Idempotency_Key="once")
        assert 200 < await used() < 400
        await running.post(f"/v1/jobs/{waits.json['id']}/cancel", None, key)
        await settled()
        assert await used() == 0
        # A reader that goes and comes back has used no less than one that stays.
        body = {**BODY, "max_tokens": 50}
        async with running.open("POST", "/v1/completions", {**body, "stream": True}, key) as left:
            first = await anext(frames_of(left))
        assert await used() > 50
        rest = await running.get(f"/v1/jobs/{str(first.id).partition(':')[0]}/stream", key)
        assert rest.frames[-1].data == "[DONE]"
        await settled()
        alone = await used()
        assert alone > 50
        await running.post("/v1/responses", {"input": "hi", "max_output_tokens": 50,
                                             "background": True}, key)  # fmt: skip
        await settled()
        assert await used() > alone + 50


@pytest.mark.usefixtures("redis")
def test_operator_makes_lists_and_revokes(
    private_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """`tokenbus keys` prints a key once, lists it without, and refuses what makes no sense."""

    def run(*args: str) -> tuple[int, str]:
        code = main(["keys", *args, "--redis", private_server.url])
        return code, capsys.readouterr().out

    _, made = run("create", "--tenant", "shop", "--tokens-per-month", "5")
    key_id = made.split("-")[1]
    _, listed = run("list")
    [line] = [line for line in listed.splitlines() if line.startswith(key_id)]
    assert "good" in line
    assert "tokens_per_month=5" in line
    assert made.strip() not in listed
    assert run("revoke", key_id)[0] == 0
    assert "revoked" in run("list")[1]
    assert run("revoke", "0" * 16)[0] == 1
    assert run("create", "--tenant", "a b")[0] == 2
