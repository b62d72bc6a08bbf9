"""Rights: the ACL lines of SECURITY.md suffice, and whoever lacks one is told at the start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gateways.doors import door
from gateways.uploads import upload
from patience import PATIENCE_S
from workers.batches import completion_line
from workers.null_workers import expected_text, follow, worker
from workers.stubs import until

from tokenbus.producer.client.async_client import AsyncClient, Job
from tokenbus.producer.client.dead_letters import DeadLetters
from tokenbus.producer.client.living_pools import living_pools
from tokenbus.producer.contract.keys import Keys
from tokenbus.producer.errors import ServerRefused
from tokenbus.producer.gateway.access.api_keys import ApiKeys, KeyLimits
from tokenbus.producer.scripts.rights import UserRole, acl_line, commands_of, missing_rights
from tokenbus.producer.server.connection import make_redis
from tokenbus.worker.control.backend import connect
from tokenbus.worker.control.service import adapt, serve
from tokenbus.worker.control.settings import ControlSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateways.doors import Door

ROOT = Path(__file__).resolve().parents[2]
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
LINES = re.findall(r"^ACL SETUSER .*$", SECURITY, re.MULTILINE)
FAST = {"null_tokens_per_s": 1000}


@pytest.fixture
async def users(redis_url: str, pool: str) -> AsyncIterator[dict[UserRole, str]]:
    """Make the users that SECURITY.md makes, for this test's pool; give a URL for each."""
    made: Any = make_redis(redis_url)
    urls = {}
    for line in LINES:
        name = line.split()[2]
        words = line.replace("tb:default", f"tb:{pool}").replace(">PASSWORD", ">pw").split()
        await made.execute_command(*words[:2], f"{name}-{pool}", *words[3:])
        urls[UserRole(name)] = f"{redis_url}?username={name}-{pool}&password=pw"
    yield urls
    for name in urls:
        await made.execute_command("ACL", "DELUSER", f"{name.value}-{pool}")
    await made.aclose()


def test_lines_of_the_page_are_those_of_the_scripts() -> None:
    """A script that needs another right needs another line on the page."""
    assert [acl_line(role, "default") for role in UserRole] == LINES


async def test_who_may_not_hear_a_client_channel_reads_the_jobs_own(
    users: dict[UserRole, str], redis_url: str, pool: str
) -> None:
    """A user whose channels are those of jobs lacks a right of a producer, and is served."""
    redis: Any = make_redis(redis_url)
    name = f"{UserRole.PRODUCER}-{pool}"
    channels = [f"&{{tb:{pool}:0}}:tok:*", f"&{{tb:{pool}}}:ctl:*"]
    await redis.execute_command("ACL", "SETUSER", name, "resetchannels", *channels)
    await redis.aclose()
    limited = make_redis(users[UserRole.PRODUCER])
    missing = await missing_rights(limited, Keys(pool), UserRole.PRODUCER)
    await limited.aclose()
    assert f"SUBSCRIBE {Keys(pool).client_channel(0, '~')}" in missing
    async with (
        await AsyncClient.connect(users[UserRole.PRODUCER], pool) as client,
        worker(pool, users[UserRole.WORKER], **FAST),
    ):
        jobs = await client.submit_many([{"prompt": "x", "seed": 1, "max_tokens": 4}] * 2)
        assert isinstance(jobs[0], Job)
        assert (await follow(client, jobs[0])).text == expected_text(1, 4)
        async with asyncio.timeout(PATIENCE_S):
            found = await client.results(jobs)
    assert [getattr(each, "text", each) for each in found] == [expected_text(1, 4)] * 2


async def test_reader_producer_and_worker_do_with_their_lines(
    users: dict[UserRole, str], pool: str
) -> None:
    """A producer submits, a worker runs, a reader reads and may not submit."""
    async with (
        await AsyncClient.connect(users[UserRole.PRODUCER], pool) as producer,
        await AsyncClient.connect(users[UserRole.READER], pool) as reader,
    ):
        cancelled = await producer.submit("x")
        assert await producer.cancel(cancelled)
        job = await producer.submit("x", seed=1, max_tokens=20)
        async with worker(pool, users[UserRole.WORKER], **FAST):
            raw = {"job": json.dumps({"id": "raw-1", "prompt": "x", "max_tokens": 4})}
            await producer.scripts.redis.xadd(producer.scripts.keys.of("inbox"), raw)  # type: ignore[arg-type]
            assert (await follow(reader, job)).text == expected_text(1, 20)
            assert (await follow(reader, cancelled)).reason == "cancelled"
            assert (await reader.result(job, PATIENCE_S)).text == expected_text(1, 20)
            assert len((await reader.status()).workers) == 1

            async def all_have_ended() -> bool:
                return (await reader.list_jobs()).jobs == ()

            await until(all_have_ended)
            assert await living_pools(reader.scripts) is not None
            await producer.pause()
            await producer.resume()
            with pytest.raises(ServerRefused) as caught:
                await reader.submit("x")
            assert caught.value.code == "NOPERM"


async def test_control_service_does_with_its_line(users: dict[UserRole, str], pool: str) -> None:
    """Webhooks, dead letters and arq's jobs are served by a user who may do no more."""
    url = users[UserRole.CONTROL]
    settings = ControlSettings(redis_url=url, pool=pool, log_level="error")
    queue = f"arq:tokenbus:{pool}"
    async with (
        worker(pool, users[UserRole.WORKER], **FAST),
        await AsyncClient.connect(url, pool) as client,
    ):
        tasks = [asyncio.create_task(run(settings)) for run in (serve, adapt)]
        job = await client.submit("x", max_tokens=2, callback_url="http://127.0.0.1:9/")
        arq = connect(url, queue)
        asked = await arq.enqueue_job("generate", prompt="x", max_tokens=2)
        assert asked is not None
        answer = await asked.result(timeout=PATIENCE_S, poll_delay=0.05)
        assert answer["reason"] == "length"
        async with asyncio.timeout(PATIENCE_S):
            while not (hook := await client.webhook(job)) or not hook.tries:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert [letter async for letter in DeadLetters(client).newest()] == []
        await client.pause()
        await client.resume()
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await arq.aclose(close_connection_pool=True)


def test_scripts_of_gateways_call_what_their_line_has() -> None:
    """Both of their lines have what they run on the keys of the deployment."""
    called = {
        name.lower()
        for room in ("gateway", "stored")
        for path in (ROOT / "producer" / room).rglob("*.py")
        for name in re.findall(r"redis\.call\('([A-Z]+)'", path.read_text(encoding="utf-8"))
    }
    assert {"getbit", "hset", "zadd"} <= called
    for role in (UserRole.GATEWAY, UserRole.CONTROL):
        assert called <= set(commands_of(role)), role


async def test_gateway_does_with_its_line(
    users: dict[UserRole, str], redis_url: str, pool: str, tmp_path: Path
) -> None:
    """Every group of routes is served, a batch too, by users who may do no more than their lines.

    Of another pool that lives beside it this gateway may see nothing, and tells nothing.
    """
    files = {"files_url": str(tmp_path)}
    settings = ControlSettings(redis_url=users[UserRole.CONTROL], pool=pool, log_level="error")
    async with (
        worker(pool, users[UserRole.WORKER], **FAST),
        worker(f"{pool}x", redis_url),
        door(users[UserRole.GATEWAY], pool, gateway_auth="keys", **files) as running,
    ):
        assert running.gateway is not None
        keys = ApiKeys(running.gateway.redis)
        key, record = await keys.create(limits=KeyLimits(tokens_per_minute=100_000))
        serving = asyncio.create_task(serve(settings.model_copy(update=files)))
        try:
            await use_all_routes(running, key, pool)
        finally:
            serving.cancel()
            await asyncio.wait([serving])
        await keys.revoke(record.key_id)
        assert await keys.revoked([record.key_id]) == {record.key_id}


async def use_all_routes(running: Door, key: str, pool: str) -> None:
    """Ask for something of each group of routes."""
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "stream": True}
    told = await running.post("/v1/chat/completions", chat | {"user": "ann"}, key)
    assert told.data_frames[-1].data == "[DONE]", told.text
    last = {"Last_Event_ID": str(told.frames[0].id)}
    assert (await running.post("/v1/chat/completions", chat, key, **last)).status == 200
    body = {"prompt": "x", "max_tokens": 3}
    assert (await running.post("/v1/completions", body, key)).status == 200
    assert (await running.post("/tokenize", {"prompt": "x"}, key)).status == 200
    models = [model["id"] for model in (await running.get("/v1/models", key)).json["data"]]
    assert pool in models
    assert f"{pool}x" not in models
    job = (await running.post("/v1/jobs", body | {"not_before_s": 900}, key)).json
    assert [each["id"] for each in (await running.get("/v1/jobs", key)).json["data"]] == [job["id"]]
    assert (await running.post(f"/v1/jobs/{job['id']}/cancel", None, key)).status == 200
    page = {"id": "c", "messages": [{"role": "user", "parts": [{"type": "text", "text": "x"}]}]}
    assert (await running.post("/api/chat", page | {"max_tokens": 3}, key)).status == 200
    assert (await running.post("/api/chat/c/stop", None, key)).status == 200
    first = (await running.post("/v1/responses", {"input": "x", "max_output_tokens": 3}, key)).json
    asked = {"input": "y", "max_output_tokens": 3, "previous_response_id": first["id"]}
    second = (await running.post("/v1/responses", asked | {"background": True}, key)).json
    path = f"/v1/responses/{second['id']}"
    assert (await running.get(f"{path}?stream=true", key)).status == 200
    assert (await running.post(f"{path}/cancel", None, key)).status == 200
    assert (await running.ask("DELETE", path, None, key)).status == 200
    line = json.dumps(completion_line(1, model=pool)).encode()
    _, file = await upload(running, line, key)
    wanted = {"endpoint": "/v1/completions", "completion_window": "24h"}
    batch = (await running.post("/v1/batches", wanted | {"input_file_id": file["id"]}, key)).json

    async def is_done() -> bool:
        told = (await running.get(f"/v1/batches/{batch['id']}", key)).json
        return bool(told["status"] == "completed")

    await until(is_done)
    told = (await running.get("/v1/batches", key)).json["data"][0]
    for order in ("asc", "desc"):
        query = f"order={order}&after={file['id']}"
        assert (await running.get(f"/v1/files?{query}", key)).status == 200
    assert (await running.get(f"/v1/files/{told['output_file_id']}/content", key)).status == 200
    assert (await running.ask("DELETE", f"/v1/files/{file['id']}", None, key)).status == 200
    assert (await running.get("/readyz")).status == 200


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ("-zadd", "ZADD"),
        ("-evalsha", "EVALSHA"),
        ("-eval", "EVAL"),
        ("resetchannels", "SUBSCRIBE"),
        ("resetkeys", "EVAL"),
    ],
)
async def test_missing_right_is_told_at_the_start(
    users: dict[UserRole, str], redis_url: str, pool: str, change: str, missing: str
) -> None:
    """Before anything runs, with what is missing and the line that suffices."""
    admin: Any = make_redis(redis_url)
    await admin.execute_command("ACL", "SETUSER", f"worker-{pool}", change)
    lacks = await missing_rights(make_redis(users[UserRole.WORKER]), Keys(pool), UserRole.WORKER)
    assert any(each.startswith(missing) for each in lacks)
    with pytest.raises(ServerRefused, match="ACL SETUSER USER reset") as caught:
        async with worker(pool, users[UserRole.WORKER]):
            pass
    assert caught.value.code == "NOPERM"
    assert acl_line(UserRole.WORKER, pool, user="USER") == caught.value.hint
    await admin.aclose()


async def test_user_without_info_is_served(
    users: dict[UserRole, str], redis_url: str, pool: str
) -> None:
    """INFO only tells version and eviction policy: without the right to it these go unchecked."""
    admin: Any = make_redis(redis_url)
    await admin.execute_command("ACL", "SETUSER", f"producer-{pool}", "-info")
    async with await AsyncClient.connect(users[UserRole.PRODUCER], pool) as client:
        assert (await client.submit("x")).created
    await admin.execute_command("ACL", "SETUSER", f"producer-{pool}", "-hello")
    async with await AsyncClient.connect(users[UserRole.PRODUCER], pool) as client:
        assert (await client.submit("x")).created
    await admin.aclose()
