"""Rights: the ACL lines of SECURITY.md suffice, and whoever lacks one is told at the start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from workers.null_workers import expected_text, follow, worker

from tokenbus.producer.client.async_client import AsyncClient, Job
from tokenbus.producer.client.dead_letters import DeadLetters
from tokenbus.producer.client.living_pools import living_pools
from tokenbus.producer.contract.keys import Keys
from tokenbus.producer.errors import ServerRefused
from tokenbus.producer.scripts.rights import UserRole, acl_line, missing_rights
from tokenbus.producer.server.connection import make_redis
from tokenbus.worker.control.backend import connect
from tokenbus.worker.control.service import adapt, serve
from tokenbus.worker.control.settings import ControlSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECURITY = (Path(__file__).resolve().parents[2] / "SECURITY.md").read_text(encoding="utf-8")
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
            assert [each.job_id for each in (await reader.list_jobs()).jobs] == []
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
