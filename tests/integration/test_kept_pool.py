"""A pool that an earlier version left half done is finished by this one.

`kept_pool/version_1.resp` is the append-only file of a server on which commit 759143b accepted
these jobs, streamed some of them half-way and was killed: finished jobs, jobs held at a worker (one
with two choices, one with a cancel flag), jobs in lanes, a cancelled one, and a raw entry in the
inbox.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from workers.null_workers import command, expected_text, follow, leaked_keys, worker

from tokenbus.producer.client.async_client import AsyncClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

KEPT = Path(__file__).with_name("kept_pool")
POOL = "kept-by-version-1"
LEASE = {"lease_ttl_s": 1, "renew_interval_s": 0.3}


def _commands(file: Path) -> Iterator[list[bytes]]:
    """Read the commands of an append-only file."""
    rest = file.read_bytes()
    while rest:
        head, _, rest = rest.partition(b"\r\n")
        if not head.startswith(b"*"):
            continue  # a remark of the server
        words = []
        for _ in range(int(head[1:])):
            length, _, rest = rest.partition(b"\r\n")
            words.append(rest[: int(length[1:])])
            rest = rest[int(length[1:]) + 2 :]
        yield words


def _postponed(words: list[bytes], by_ms: int) -> list[bytes]:
    """Move the time at which a key expires, as if the file had been written now."""
    name = words[0].upper()
    if name == b"PEXPIREAT" or (name == b"SET" and b"PXAT" in words):
        return [*words[:-1], b"%d" % (int(words[-1]) + by_ms)]
    return words


async def _replay(client: AsyncClient, file: Path, recorded_ms: int) -> None:
    pipeline: Any = client.scripts.redis.pipeline(transaction=False)
    by_ms = int(time.time() * 1000) - recorded_ms
    for words in _commands(file):
        if words[0].upper() not in {b"SELECT", b"MULTI", b"EXEC"}:
            pipeline.execute_command(*_postponed(words, by_ms))
    await pipeline.execute()


@pytest.fixture
async def kept(redis_url: str) -> AsyncIterator[tuple[AsyncClient, list[dict[str, Any]]]]:
    """Give a client on the pool as it was left, and what its jobs have to say."""
    told = json.loads((KEPT / "version_1.json").read_text())
    async with await AsyncClient.connect(redis_url, pool=POOL) as client:
        await _replay(client, KEPT / "version_1.resp", told["recorded_ms"])
        for job in told["jobs"]:
            record = client.scripts.keys.of("job", job["job_id"])
            tenant = await command(client.scripts, "HGET", record, "tenant")
            job["tenant"] = "default" if tenant is None else tenant.decode()
        yield client, told["jobs"]
        async for key in client.scripts.redis.scan_iter(f"{{tb:{POOL}*", count=1000):
            await client.scripts.redis.delete(key)


async def test_pool_of_an_earlier_version_is_finished(
    kept: tuple[AsyncClient, list[dict[str, Any]]], redis_url: str
) -> None:
    """Every job ends once with the text of an unbroken run, whoever began it; nothing leaks."""
    client, jobs = kept
    known = [(job["job_id"], job["tenant"]) for job in jobs if job["job_id"] != "raw-in"]
    assert len({tenant for _, tenant in known}) > 1
    read = asyncio.gather(*(follow(client, job_id, tenant=tenant) for job_id, tenant in known))
    async with worker(POOL, redis_url, **LEASE):
        stories = {story.job_id: story for story in await read}
        stories["raw-in"] = await follow(client, "raw-in")
        for job in jobs:
            story, reason = stories[job["job_id"]], job.get("reason", "length")
            assert story.reason == reason, job
            for choice in range(job["n"] if job["tokens"] else 0):
                whole = expected_text(job["seed"], job["tokens"], choice)
                text = story.texts[choice]
                assert text == whole if reason == "length" else whole.startswith(text)
        resumed = [story for story in stories.values() if story.job_id.startswith("half")]
        assert len(resumed) > 5
        assert all(len(story.epochs) > 1 for story in resumed if story.reason == "length")
    inbox = client.scripts.keys.of("inbox")
    assert await command(client.scripts, "XLEN", inbox) == 0
    assert set(await leaked_keys(client.scripts)) <= {inbox}
