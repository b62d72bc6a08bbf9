"""Calls that outlive a rollback: what follows from a write that the server has lost is not written.

The server loses its last second in the middle of a chain of calls, at a chosen call.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from servers.wire_proxy import Moment, WireProxy
from storm.keys import PoolKeys
from storm.wire import Wire
from workers.brake import Brake
from workers.null_workers import expected_ids, expected_text, follow, leaked_keys, until, worker
from workers.stubs import until as server_says

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import JobUnknown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tokenbus.producer.scripts import Scripts

NUM_TOKENS = 60


@pytest.fixture
def keys(redis_url: str, pool: str) -> Iterator[PoolKeys]:
    """Give power over all keys of the pool."""
    power = Wire(redis_url.removeprefix("unix://"))
    yield PoolKeys(power, pool)
    power.close()


@pytest.fixture
async def wire(redis_url: str) -> AsyncIterator[WireProxy]:
    """Give an address of the server whose connections can be cut."""
    async with WireProxy(Path(redis_url.removeprefix("unix://"))) as made:
        yield made


async def test_completion_does_not_outlive_the_end_that_it_completes(
    client: AsyncClient,
    scripts: Scripts,
    keys: PoolKeys,
    wire: WireProxy,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server loses a terminal entry that it had confirmed, before the job is completed.

    The worker forgets the completion, logs again what is missing and ends the job once more: its
    record is never done while its log has no end.
    """
    # The engine waits amid the answer until the trap is set.
    brake = Brake(monkeypatch, num_ahead=4)
    brake.set(NUM_TOKENS // 2)
    async with worker(pool, wire.url, null_tokens_per_s=60, renew_interval_s=0.2) as running:
        job = await client.submit("hello", seed=3, max_tokens=NUM_TOKENS)
        seen = asyncio.Event()
        reader = asyncio.create_task(
            follow(client, job, lambda story: seen.set() if story.last >= 10 else None)
        )
        await seen.wait()
        before = keys.dump()
        trap = wire.trap("complete_many", Moment.NEVER, lambda: keys.restore(before))
        brake.resume()
        await trap.closed()
        events = await scripts.log.events(job.job_id) or []
        assert events[-1].finish is None
        assert (await reader).text == expected_text(3, NUM_TOKENS)
        await until(lambda: running.num_held == 0)
        events = [event async for event in client.stream(job)]
        assert [event.finish is not None for event in events].count(True) == 1
        assert [i for e in events for i in e.ids] == expected_ids(3, NUM_TOKENS)
        assert (await client.result(job)).text == expected_text(3, NUM_TOKENS)

        async def is_tidy() -> bool:
            return await leaked_keys(scripts) == []

        await server_says(is_tidy)


async def test_end_of_a_cancelled_job_does_not_outlive_the_job(
    keys: PoolKeys, wire: WireProxy, pool: str
) -> None:
    """The server loses a job and its cancel before the canceller has written the end.

    The canceller asks again and is told that there is no such job; no log is left behind.
    """
    async with await AsyncClient.connect(wire.url, pool=pool) as client:
        before = keys.dump()
        job = await client.submit("hello")
        trap = wire.trap("end", Moment.NEVER, lambda: keys.restore(before))
        with pytest.raises(JobUnknown):
            await client.cancel(job)
        await trap.closed()
        assert keys.dump() == before == []
