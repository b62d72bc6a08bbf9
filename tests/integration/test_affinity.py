"""Two workers with real prefix caches: who has a prompt's beginning gets the next job of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from bus_workers import worker
from tiny_model import TinyModel

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.producer.client import AsyncClient

PAGE_SIZE = 16
NUM_SHARED = 320
NUM_JOBS = 5


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_jobs_of_a_prefix_go_to_the_worker_that_holds_it(
    client: AsyncClient, redis_url: str, pool: str, tmp_path: Path
) -> None:
    """Of two idle workers the same one takes every job of a tenant's prompt, from its cache."""
    model = TinyModel(tmp_path)
    settings = {
        "engine": "paged",
        "model": str(model.folder),
        "dtype": "float32",
        "device": "cpu",
        "page_size": PAGE_SIZE,
        "num_pages": 128,
        "num_threads": 1,
        "affinity_wait_ms": 60_000,
    }
    async with (
        worker(pool, redis_url, **settings) as one,
        worker(pool, redis_url, **settings) as two,
    ):
        takers: list[set[str]] = [set(), set()]
        for number in range(2 * NUM_JOBS):
            tenant = number % 2
            before = one.metrics.jobs_pulled
            prompt = [10 + (tenant + index) % 400 for index in range(NUM_SHARED)]
            job = await client.submit(
                token_ids=[*prompt, 450 + number], max_tokens=4, tenant=f"tenant-{tenant}"
            )
            result = await client.result(job.job_id, timeout_s=60)
            takers[tenant].add((one if one.metrics.jobs_pulled > before else two).name)
            if number >= 2:
                assert result.finish.usage.cached_tokens == NUM_SHARED, number
        assert [len(names) for names in takers] == [1, 1]
