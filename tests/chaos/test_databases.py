"""Logical databases of one server: pub/sub knows none of them, and nothing crosses all the same."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Self

from patience import PATIENCE_S
from rides.scale import IS_SHORT, PATIENT
from workers.null_workers import command, expected_text, follow, until, worker

from tokenbus.producer.client.async_client import AsyncClient

NUM_JOBS = 50 if IS_SHORT else 1000
NUM_TOKENS = 6
# Seeds of the second database's jobs begin here, so that no text is that of the first.
SHIFT = 10_000


class Ear:
    """Hears every channel of a pool, as pub/sub brings them: from all databases."""

    def __init__(self, client: AsyncClient) -> None:
        self.channels: set[str] = set()
        self._client = client

    async def __aenter__(self) -> Self:
        self._pubsub: Any = self._client.scripts.redis.pubsub(ignore_subscribe_messages=True)
        await self._pubsub.psubscribe(f"{{tb:{self._client.scripts.keys.pool}*")
        self._task = asyncio.create_task(self._hear())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._pubsub.aclose()

    async def _hear(self) -> None:
        while True:
            message = await self._pubsub.get_message(timeout=1)
            if message is not None:
                self.channels.add(message["channel"].decode())


def kind_of(channel: str) -> str:
    """Return a channel's name without the job or the client's secret at its end."""
    before, mark, _ = channel.partition(":cli:")
    return before + mark if mark else channel.partition("job-")[0]


async def run_jobs(client: AsyncClient, shift: int) -> list[str]:
    """Submit jobs of fixed ids, read them all and return their texts."""
    fields: dict[str, Any] = {"max_tokens": NUM_TOKENS, "tenant": "shop"}
    jobs = [
        await client.submit("hello", seed=shift + number, id=f"job-{number}", **fields)
        for number in range(NUM_JOBS)
    ]
    stories = [asyncio.create_task(follow(client, job, tenant="shop")) for job in jobs]
    return [story.text for story in await asyncio.gather(*stories)]


async def test_no_event_crosses_databases(redis_url: str, pool: str) -> None:
    """The same pool and ids in databases 0 and 3: each reader has its own database's answer."""
    other_url = f"{redis_url}?db=3"
    async with (
        await AsyncClient.connect(redis_url, pool=pool, settings=PATIENT) as first,
        await AsyncClient.connect(other_url, pool=pool, settings=PATIENT) as second,
        Ear(first) as ear,
        worker(pool, redis_url),
        worker(pool, other_url),
    ):
        texts = await asyncio.gather(run_jobs(first, 0), run_jobs(second, SHIFT))
        for shift, found in zip((0, SHIFT), texts, strict=True):
            assert found == [
                expected_text(shift + number, NUM_TOKENS) for number in range(NUM_JOBS)
            ]
        tags = {f"{{tb:{pool}:0}}:tok:", f"{{tb:{pool}:0}}:db3:tok:"}
        tags |= {f"{{tb:{pool}:0}}:cli:", f"{{tb:{pool}:0}}:db3:cli:"}
        tags |= {f"{{tb:{pool}}}:ended", f"{{tb:{pool}}}:db3:ended"}
        # One per job, one per client and one of ends in each database, and none that both use.
        num_channels = 2 * (NUM_JOBS + 2)
        await until(lambda: len(ear.channels) >= num_channels)
        assert len(ear.channels) == num_channels
        assert {kind_of(channel) for channel in ear.channels} == tags


async def test_notices_to_workers_stay_in_their_database(redis_url: str, pool: str) -> None:
    """A cancel is told on a channel of the database, and ends the job there alone."""
    other_url = f"{redis_url}?db=3"
    async with (
        await AsyncClient.connect(redis_url, pool=pool, settings=PATIENT) as first,
        await AsyncClient.connect(other_url, pool=pool, settings=PATIENT) as second,
        Ear(first) as ear,
        worker(pool, redis_url, null_tokens_per_s=100),
        worker(pool, other_url, null_tokens_per_s=100) as running,
    ):
        fields: dict[str, Any] = {"id": "one", "seed": 1}
        kept = asyncio.create_task(follow(first, await first.submit("a", max_tokens=50, **fields)))
        job = await second.submit("a", max_tokens=5000, **fields)
        async with asyncio.timeout(PATIENCE_S):
            async for _ in second.stream(job):
                break
        await second.cancel(job)
        story = await follow(second, job)
        assert story.finish is not None
        assert story.finish.reason == "cancelled"
        assert (await kept).text == expected_text(1, 50)
        await until(lambda: f"{{tb:{pool}}}:db3:ctl:{running.name}" in ear.channels)
        assert not any(":ctl:" in each and ":db3:" not in each for each in ear.channels)


async def test_event_of_version_1_from_another_database_is_dropped(
    redis_url: str, pool: str
) -> None:
    """Workers of version 1 publish on the channels of database 0 wherever they are."""
    # Who submitted it reads a channel of its own.
    async with await AsyncClient.connect(redis_url, pool=pool) as submitter:
        job = await submitter.submit("hello", seed=1, max_tokens=30, id="mine")
    async with await AsyncClient.connect(redis_url, pool=pool, settings=PATIENT) as client:
        begun = asyncio.Event()
        reading = asyncio.create_task(follow(client, job, lambda _: begun.set()))
        wire = {"v": 1, "job": "mine", "epoch": 1, "choice": 0, "text": "", "ids": [], "ends": []}
        token = wire | {"from": 1, "to": 1, "text": "alien", "ids": [7], "ends": [5]}
        end = wire | {"from": 1, "to": 0, "finish": {"reason": "stop"}}

        async def publish_aliens() -> None:
            for message in (token, end):
                await command(client.scripts, "PUBLISH", job.channel, json.dumps(message))

        async with asyncio.timeout(PATIENCE_S):
            while not await command(client.scripts, "PUBLISH", job.channel, "{}"):
                pass
            await publish_aliens()
            async with worker(pool, redis_url, null_tokens_per_s=50):
                await begun.wait()
                await publish_aliens()
                assert (await reading).text == expected_text(1, 30)
