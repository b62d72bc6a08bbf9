"""What the pool is told of a worker that starts: from its connection to its lease."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from patience import PATIENCE_S
from servers.fixtures import pool, redis_url, scripts, server
from workers.null_workers import null_settings, until
from workers.stubs import raw

from tokenbus.worker.life import WorkerLife
from tokenbus.worker.pool.lease import Lease
from tokenbus.worker.pool.start_status import StartStatus
from tokenbus.worker.supervisor import Worker

if TYPE_CHECKING:
    import pytest

    from tokenbus.producer.scripts import Scripts

__all__ = ["pool", "redis_url", "scripts", "server"]


async def test_worker_is_told_of_until_it_has_its_lease(
    scripts: Scripts, redis_url: str, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its engine is there, its lease is not yet: it still starts, and says so again and again."""
    keys, redis = scripts.keys, raw(scripts)
    opens = Lease.open

    async def opened_late(lease: Lease, within_s: float, **more: bool) -> None:
        status = keys.of("status", started.name)
        for _ in range(2):
            await redis.delete(status)
            async with asyncio.timeout(PATIENCE_S):
                while not await redis.exists(status):  # noqa: ASYNC110 - the key has no events
                    await asyncio.sleep(0.01)
        assert await redis.smembers(keys.of("starting")) == {started.name.encode()}
        await opens(lease, within_s, **more)

    monkeypatch.setattr(Lease, "open", opened_late)
    started = Worker(null_settings(pool, redis_url))
    async with started:
        await until(lambda: started.stats is not None)
        assert await redis.smembers(keys.of("starting")) == set()
        assert float(await redis.hget(keys.of("drain"), "start_s")) > 0


async def test_starts_are_told_by_their_mean(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first stands for all, each further one has its share; one that failed tells nothing."""
    life = WorkerLife(lambda *_: None)
    status = StartStatus(scripts.redis, scripts.keys, worker="w", model="m", life=life, ttl_s=5)
    told = []
    for is_ready, took_s in ((False, 500), (True, 100), (True, 200)):
        monkeypatch.setattr(WorkerLife, "uptime_s", float(took_s))
        await status.end(is_ready=is_ready)
        told.append(await raw(scripts).hget(scripts.keys.of("drain"), "start_s"))
    assert [each and round(float(each)) for each in told] == [None, 100, 130]
