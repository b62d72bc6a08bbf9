"""Two workers with real prefix caches: who has a prompt's beginning gets the next job of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from models.tiny_model import TinyModel
from patience import PATIENCE_S
from workers.null_workers import worker

from tokenbus.producer.contract.prefix_key import MIN_IDS

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.producer.client.async_client import AsyncClient

PAGE_SIZE = 16
NUM_SHARED = 320
NUM_JOBS = 5


def settings_of(model: TinyModel, num_pages: int = 128, **more: Any) -> dict[str, Any]:
    """Settings of a worker with a real engine."""
    return {
        "engine": "paged",
        "model": str(model.folder),
        "dtype": "float32",
        "device": "cpu",
        "page_size": PAGE_SIZE,
        "num_pages": num_pages,
        "num_threads": 1,
        **more,
    }


def prompt_of(first: int) -> list[int]:
    """Return the beginning that prompts of a kind have in common."""
    return [10 + (first + index) % 400 for index in range(NUM_SHARED)]


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_jobs_of_a_prefix_go_to_the_worker_that_holds_it(
    client: AsyncClient, redis_url: str, pool: str, tmp_path: Path
) -> None:
    """Of two idle workers the same one takes every job of a tenant's prompt, from its cache."""
    settings = settings_of(TinyModel(tmp_path), affinity_wait_ms=60_000)
    async with (
        worker(pool, redis_url, **settings) as one,
        worker(pool, redis_url, **settings) as two,
    ):
        takers: list[set[str]] = [set(), set()]
        for number in range(2 * NUM_JOBS):
            tenant = number % 2
            before = one.metrics.jobs_pulled
            prompt = prompt_of(tenant)
            job = await client.submit(
                token_ids=[*prompt, 450 + number], max_tokens=4, tenant=f"tenant-{tenant}"
            )
            result = await client.result(job, timeout_s=PATIENCE_S)
            takers[tenant].add((one if one.metrics.jobs_pulled > before else two).name)
            if number >= 2:
                assert result.finish.usage.cached_tokens == NUM_SHARED, number
        assert [len(names) for names in takers] == [1, 1]


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
@pytest.mark.parametrize(
    "group",
    [None, pytest.param("shop", marks=pytest.mark.slow)],
    ids=["by-tenant", "in-one-group"],
)
async def test_jobs_beside_their_prefixes_run_at_once_and_none_goes_back_and_forth(
    client: AsyncClient, redis_url: str, pool: str, tmp_path: Path, group: str | None
) -> None:
    """Pages for three prompts and their jobs' own tokens hold many times three jobs at once.

    Counted in full no more than four would be there.
    """
    num_tenants, own_pages, num_out = 3, 3, 40
    num_pages = 1 + num_tenants * NUM_SHARED // PAGE_SIZE + 12 * own_pages
    settings = settings_of(TinyModel(tmp_path), num_pages=num_pages, reserve_fraction=0)
    async with worker(pool, redis_url, **settings) as running:
        # All wait before any runs: where they come slowly, eight are never there at once.
        await client.pause()
        jobs = []
        for number in range(36):
            tenant = number % num_tenants
            prompt = prompt_of(tenant)
            job = await client.submit(
                token_ids=[*prompt, 450 + number],
                max_tokens=num_out,
                tenant=f"tenant-{tenant}",
                cache_group=group,
                cache_secret=None if group is None else "known to all tenants",
            )
            jobs.append(job)
        await client.resume()
        for job in jobs:
            result = await client.result(job, timeout_s=PATIENCE_S)
            assert result.finish.reason == "length"
        counted = running.metrics
        assert counted.peak_running >= 8
        assert counted.jobs_pulled == len(jobs)
        assert counted.jobs_undone == counted.jobs_requeued == counted.preemptions == 0
        assert running.stats is not None
        assert running.stats.num_running == running.stats.num_waiting == 0


@pytest.mark.slow
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_beginnings_that_go_apart_are_served_without_going_in_circles(
    client: AsyncClient, redis_url: str, pool: str, tmp_path: Path
) -> None:
    """A prefix is named by its first 256 ids: what shares no more is counted in full.

    It goes back once at most.
    """
    settings = settings_of(
        TinyModel(tmp_path), num_pages=1 + 6 * NUM_SHARED // PAGE_SIZE, reserve_fraction=0
    )
    async with worker(pool, redis_url, **settings) as running:
        jobs = []
        for number in range(30):
            # Two of three go on alike, the third is a stranger to all from there.
            first = 10 if number % 3 else 11 + number
            prompt = prompt_of(10)[:MIN_IDS] + prompt_of(first)
            job = await client.submit(
                token_ids=[*prompt, 450 + number], max_tokens=24, cache_group="mixed"
            )
            jobs.append(job)
        for job in jobs:
            result = await client.result(job, timeout_s=PATIENCE_S)
            assert result.finish.reason == "length"
        assert running.metrics.jobs_undone <= len(jobs)
        assert running.metrics.jobs_pulled == len(jobs) + running.metrics.jobs_undone


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_draining_worker_leaves_its_prefixes_to_others_at_once(
    client: AsyncClient, redis_url: str, pool: str, tmp_path: Path
) -> None:
    """While one job of a prefix runs out on a worker that drains, the next runs elsewhere."""
    settings = settings_of(TinyModel(tmp_path), affinity_wait_ms=600_000, drain_deadline_s=60)
    prompt = prompt_of(0)
    async with (
        worker(pool, redis_url, **settings) as one,
        worker(pool, redis_url, **settings) as two,
    ):
        long = await client.submit(token_ids=prompt, max_tokens=600)
        # Had it not begun, the draining worker would give it back at once.
        await anext(aiter(client.stream(long)))
        draining, other = (one, two) if one.metrics.jobs_pulled else (two, one)
        draining.request_stop()
        job = await client.submit(token_ids=[*prompt, 450], max_tokens=4)
        assert (await client.result(job, timeout_s=PATIENCE_S)).finish.reason == "length"
        assert (other.metrics.jobs_pulled, draining.metrics.jobs_pulled) == (1, 1)
        assert (await client.result(long, timeout_s=PATIENCE_S)).finish.reason == "length"
