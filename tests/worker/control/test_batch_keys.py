"""Batches of API keys: what a key may use holds for its lines, and they end with it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from patience import until_within
from workers.batches import BatchDesk, batches_run, completion_line
from workers.null_workers import worker
from workers.stubs import until

from tokenbus.producer.contract.cache_scope import cache_scope
from tokenbus.producer.gateway.access import limits
from tokenbus.producer.gateway.access.api_keys import ApiKeys, KeyLimits
from tokenbus.producer.gateway.access.caller import NO_OWNER
from tokenbus.producer.gateway.access.key_ring import caller_of
from tokenbus.producer.stored.batch_record import BatchRecord, BatchStatus
from tokenbus.worker.control.batches.batch_key import BatchKey
from tokenbus.worker.control.batches.batch_line import BatchLine, line_job

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis

    from tokenbus.producer.client.async_client import AsyncClient

# What a line may come to: its three tokens, and the estimate of its prompt.
LINE_TOKENS = 4


@pytest.fixture
def desk(client: AsyncClient, tmp_path: Path) -> BatchDesk:
    """Give a place for batches of the pool."""
    return BatchDesk(client, str(tmp_path))


async def made_key(desk: BatchDesk, **given: Any) -> str:
    """Make a key of the desk's tenant with limits; return its id."""
    made = await ApiKeys(desk.client.scripts.redis).create(tenant="acme", limits=KeyLimits(**given))
    return made[1].key_id


async def uses(desk: BatchDesk, key_id: str, kind: str) -> list[int]:
    """Return the counters of a key, of all windows."""
    redis: Any = desk.client.scripts.redis
    names = [name async for name in redis.scan_iter(f"{{tokenbus}}:key_use:{key_id}:{kind}:*")]
    # A window may be forgotten between the two looks.
    counts = [await redis.get(name) for name in names]
    return [int(count) for count in counts if count is not None]


async def test_revoked_key_ends_its_batch(
    desk: BatchDesk, redis_url: str, pool: str, tmp_path: Path
) -> None:
    """Within two seconds nothing of it is in the queue, and the lines left say why."""
    key_id = await made_key(desk)
    lines = [completion_line(number, max_tokens=4000) for number in range(12)]
    async with (
        worker(pool, redis_url, null_tokens_per_s=20),
        batches_run(desk, tmp_path, batch_window=8),
    ):
        batch_id = await desk.create(lines, key_id=key_id)

        async def are_all_queued() -> bool:
            return len((await desk.client.list_jobs()).jobs) == 8

        await until(are_all_queued)
        await ApiKeys(desk.client.scripts.redis).revoke(key_id)
        ending = asyncio.create_task(desk.ended(batch_id))
        await until_within(ending.done, 2.0)
        assert (await desk.client.list_jobs()).jobs == ()
    state = ending.result()
    assert (state.status, state.failed) == (BatchStatus.CANCELLED, len(lines))
    errors = await desk.rows(state.error_file_id)
    assert {row["error"]["code"] for row in errors} == {"batch_cancelled"}


async def test_lines_wait_for_the_minutes_of_their_key(
    desk: BatchDesk, redis_url: str, pool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each window has as many as the key may have, whoever runs the batch; each counts once."""
    monkeypatch.setattr(limits, "MINUTE_S", 1)
    key_id = await made_key(desk, requests_per_minute=5, tokens_per_month=10_000)
    lines = [completion_line(number) for number in range(12)]
    async with worker(pool, redis_url):
        async with batches_run(desk, tmp_path):
            batch_id = await desk.create(lines, key_id=key_id)
            await desk.until(batch_id, 1)
        # Another service goes on: what was counted stays, and is counted no second time.
        async with batches_run(desk, tmp_path):
            state = await desk.ended(batch_id)
    assert (state.status, state.completed) == (BatchStatus.COMPLETED, len(lines))
    rows = await desk.rows(state.output_file_id)
    used = sum(row["response"]["body"]["usage"]["total_tokens"] for row in rows)
    # Of two months where one ends meanwhile.
    assert sum(await uses(desk, key_id, "tokens")) == used
    counted = await uses(desk, key_id, "requests")
    # The first windows may be forgotten by now.
    assert max(counted, default=0) <= 5
    assert sum(counted) <= len(lines)


async def test_line_over_the_month_of_its_key_is_refused(
    desk: BatchDesk, redis_url: str, pool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that no later window of the batch has room for says 429, as the door does."""
    monkeypatch.setattr(limits, "_seconds_to_month", lambda *_: 20 * 86_400)
    few = await made_key(desk, requests_per_month=3)
    small = await made_key(desk, tokens_per_minute=LINE_TOKENS)
    lines = [completion_line(number) for number in range(8)]
    lines[5]["body"]["max_tokens"] = 500
    async with worker(pool, redis_url), batches_run(desk, tmp_path):
        first = await desk.ended(await desk.create(lines, key_id=few))
        second = await desk.ended(await desk.create(lines[5:6], key_id=small))
    assert (first.status, first.completed, first.failed) == (BatchStatus.COMPLETED, 3, 5)
    assert (second.completed, second.failed) == (0, 1)
    for state in (first, second):
        for row in await desk.rows(state.error_file_id):
            assert row["response"]["status_code"] == 429
            assert row["response"]["body"]["error"]["code"] == "rate_limit_exceeded"
    assert await uses(desk, few, "requests") == [3]


async def test_lines_share_cached_prompts_with_their_key_alone(client: AsyncClient) -> None:
    """Keys of one tenant, keys that are not stored, and batches of those are apart."""
    redis: Redis = client.scripts.redis
    stored = [(await ApiKeys(redis).create(tenant="acme"))[1] for _ in range(2)]
    owners = [caller_of(key).id_prefix for key in stored]
    asked = [
        ("batch_1", owners[0], stored[0].key_id), ("batch_2", owners[0], stored[0].key_id),
        ("batch_3", owners[1], stored[1].key_id), ("batch_4", "a" * 12, None),
        ("batch_5", "a" * 12, None), ("batch_6", NO_OWNER, None),
    ]  # fmt: skip
    scopes = [await scope_of_line(redis, *each) for each in asked]
    assert scopes[0] == scopes[1]
    assert len(set(scopes)) == 5
    assert scopes[0] != await scope_of_line(redis, *asked[0], prompt_cache_key="x")
    # Whoever asks for the same at the door shares them.
    fields = caller_of(stored[0]).cache_fields(None)
    assert fields["cache_group"] == owners[0]


async def scope_of_line(
    redis: Redis, batch_id: str, owner: str, key_id: str | None, **body: Any
) -> str:
    """Return whose cached prompts a line of a batch shares."""
    record = BatchRecord(
        id=batch_id, owner=owner, tenant="acme", pool="p", priority=2, input_file_id="f",
        endpoint="/v1/completions", completion_window="24h", created_at=int(time.time()),
        expires_at=2**40, key_id=key_id,
    )  # fmt: skip
    line = BatchLine(1, "a", {"prompt": "hi", **body})
    caller = await BatchKey(redis, record).caller()
    job = line_job(line, record, caller, "j", {"/v1/completions": 16})
    return cache_scope(job.request)
