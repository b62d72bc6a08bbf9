"""A worker and its queue: every job ends once, and what it says arrives whole."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from workers.null_workers import (
    command,
    expected_ids,
    expected_text,
    follow,
    leaked_keys,
    num_waiting,
    until,
    worker,
)

from tokenbus.producer.client.async_client import Job
from tokenbus.producer.errors import JobUnknown
from tokenbus.producer.scripts.lease import LeaseScripts
from tokenbus.producer.scripts.replies import Pulled
from tokenbus.worker.jobs.start import Starter
from tokenbus.worker.pool import pull_loop
from tokenbus.worker.pool.cancel_listener import CancelListener

if TYPE_CHECKING:
    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.scripts import Scripts


async def test_every_job_has_one_terminal_event_and_gapless_indices(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """Jobs of several tenants, priorities and choices all end once, with exactly their tokens."""
    rng = random.Random(1)
    async with worker(pool, redis_url) as running:
        wanted: list[dict[str, Any]] = [
            {"seed": seed, "max_tokens": rng.randint(1, 60), "n": rng.choice([1, 1, 1, 3])}
            for seed in range(60)
        ]
        jobs = [
            await client.submit(
                "x" * rng.randint(1, 200),
                tenant=rng.choice("abc"),
                priority=rng.randint(0, 2),
                **fields,
            )
            for fields in wanted
        ]
        stories = await asyncio.gather(*(follow(client, job) for job in jobs))
        for fields, story in zip(wanted, stories, strict=True):
            assert story.reason == "length"
            for choice in range(fields["n"]):
                ids = expected_ids(fields["seed"], fields["max_tokens"], choice)
                assert story.ids[choice] == ids
                assert story.texts[choice] == expected_text(fields["seed"], len(ids), choice)
        for job, story in zip(jobs, stories, strict=True):
            result = await client.result(job, timeout_s=PATIENCE_S)
            assert {c.index: list(c.ids) for c in result.choices} == story.ids
            assert {c.index: c.text for c in result.choices} == story.texts
        await until(lambda: running.num_held == 0)
        assert running.stats is not None
        assert running.stats.num_running == running.stats.num_waiting == 0
        assert running.stats.free_pages == running.stats.num_pages - 1
    assert await leaked_keys(scripts) == []


async def test_job_is_seen_at_once_by_an_idle_worker(
    client: AsyncClient, redis_url: str, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs sent one after the other to an idle worker do not wait for a poll: it makes none."""
    monkeypatch.setattr(pull_loop, "MAX_WAIT_S", 10 * PATIENCE_S)
    async with worker(pool, redis_url):
        for seed in range(30):
            job = await client.submit("hello", seed=seed, max_tokens=2)
            story = await follow(client, job)
            assert story.text == expected_text(seed, 2)


async def test_pool_too_small_for_all_holds_at_most_one_job_that_does_not_run(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """With pages for about two jobs at a time all of forty finish, and at most one waits here.

    Each job has a lane of its own, so that max_tokens is counted and nothing is over-admitted.
    """
    async with worker(
        pool, redis_url, num_pages=13, page_size=16, hol_bypass_ms=20, null_tokens_per_s=400
    ) as running:
        jobs = [
            await client.submit(
                "x" * (16 * (1 + seed % 5)),
                seed=seed,
                max_tokens=8 + seed % 50,
                tenant=f"tenant-{seed}",
            )
            for seed in range(40)
        ]
        peak = 0

        def look() -> bool:
            nonlocal peak
            peak = max(peak, num_waiting(running))
            return finished.done()

        finished = asyncio.gather(*(follow(client, job) for job in jobs))
        await until(look)
        assert [story.reason for story in await finished] == ["length"] * 40
        assert peak == 1
        assert running.metrics.peak_waiting == 0
        assert running.metrics.preemptions == 0


async def test_over_admission_is_repaired_by_preemption(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """A lane whose outputs grow longer than it taught us costs preemptions, never a token."""
    async with worker(
        pool, redis_url, num_pages=25, page_size=16, null_tokens_per_s=300
    ) as running:
        for seed in range(10):
            job = await client.submit("x" * 16, seed=seed, max_tokens=4)
            assert (await follow(client, job)).reason == "length"
        # In one call: where they come one by one, the first may be over before there are too many.
        asked = [
            {"prompt": "x" * 16, "seed": seed, "max_tokens": 120, "min_tokens": 120}
            for seed in range(12)
        ]
        jobs = [job for job in await client.submit_many(asked) if isinstance(job, Job)]
        assert len(jobs) == len(asked)
        stories = await asyncio.gather(*(follow(client, job) for job in jobs))
        for seed, story in enumerate(stories):
            assert story.text == expected_text(seed, 120)
        assert running.metrics.preemptions > 0


async def test_job_that_can_never_fit_fails_alone(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """A prompt longer than the context ends with a failed event that names the field."""
    async with worker(pool, redis_url, max_model_len=128):
        long = await client.submit("x" * 500, max_tokens=4)
        greedy = await client.submit("hello", max_tokens=4000)
        good = await client.submit("hello", seed=1, max_tokens=4)
        failed = await follow(client, long)
        assert failed.finish is not None
        assert failed.finish.error is not None
        assert (failed.finish.error.code, failed.finish.error.field) == ("too_long", "prompt")
        failed = await follow(client, greedy)
        assert failed.finish is not None
        assert failed.finish.error is not None
        assert (failed.finish.error.code, failed.finish.error.field) == ("too_long", "max_tokens")
        assert (await follow(client, good)).text == expected_text(1, 4)


async def test_stop_string_ends_the_text_before_it(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """Nothing of a stop string is published, and the job ends by `stop` with what came before."""
    whole = expected_text(5, 40)
    stop = whole[60:66]
    async with worker(pool, redis_url):
        job = await client.submit("hello", seed=5, max_tokens=40, stop=[stop])
        story = await follow(client, job)
        assert story.reason == "stop"
        assert story.text == whole[: whole.index(stop)]


async def test_cancelled_queued_job_never_runs(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """A job cancelled before any worker lives ends `cancelled`, without a token."""
    job = await client.submit("hello", max_tokens=10)
    assert await client.cancel(job)
    async with worker(pool, redis_url) as running:
        story = await follow(client, job)
        assert (story.reason, story.last) == ("cancelled", 0)
        assert running.metrics.jobs_pulled == 0
    assert not await client.cancel(job)
    assert await leaked_keys(scripts) == []


async def test_cancelled_running_job_keeps_its_text_and_frees_its_pages(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """A running job ends soon after the cancel, with a true part of its text."""
    async with worker(pool, redis_url, null_tokens_per_s=200) as running:
        job = await client.submit("hello", seed=3, max_tokens=5000)
        cancelled = False

        def cancel_midway(_: object) -> None:
            nonlocal cancelled
            if not cancelled:
                cancelled = True
                tasks.append(asyncio.create_task(client.cancel(job)))

        tasks: list[asyncio.Task[bool]] = []
        story = await follow(client, job, cancel_midway)
        assert story.reason == "cancelled"
        assert 0 < story.last < 5000
        assert story.text == expected_text(3, story.last)
        assert await tasks[0]
        await until(lambda: running.num_held == 0)
        await until(lambda: running.stats is not None and running.stats.num_running == 0)


@pytest.mark.parametrize(
    ("part", "name"), [(LeaseScripts, "pull"), (Starter, "tokenise")], ids=["pull", "tokenise"]
)
async def test_cancel_is_not_lost_on_a_job_that_is_being_taken(
    client: AsyncClient,
    redis_url: str,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
    part: Any,
    name: str,
) -> None:
    """The notice is heard before the worker knows the job, or has begun it; the job ends soon."""
    heard: list[bytes] = []
    take, reach = CancelListener._take, getattr(part, name)

    def hear(listener: CancelListener, text: bytes) -> None:
        take(listener, text)
        heard.append(text)

    async def answer_late(*args: Any) -> Any:
        answer = await reach(*args)
        if not heard and (not isinstance(answer, Pulled) or answer.jobs):
            keys = client.scripts.keys
            owner = await command(client.scripts, "HGET", keys.of("job", job.job_id), "owner")
            assert await client.cancel(job)
            # Of a job without a log it is said twice; all is heard once this is.
            await command(client.scripts, "PUBLISH", keys.of("ctl", owner.decode()), "the last")
            await until(lambda: b"the last" in heard)
        return answer

    monkeypatch.setattr(CancelListener, "_take", hear)
    monkeypatch.setattr(part, name, answer_late)
    job = await client.submit("hello", max_tokens=4000)
    async with worker(pool, redis_url, null_tokens_per_s=200, renew_interval_s=0.1) as running:
        assert (await follow(client, job)).reason == "cancelled"
        await until(lambda: running.num_held == 0)


async def test_cancel_of_an_unknown_job_is_a_typed_error(client: AsyncClient) -> None:
    """Cancelling what never was raises JobUnknown."""
    with pytest.raises(JobUnknown):
        await client.cancel("s0-never")


async def test_deadline_ends_a_running_job_with_what_it_has(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """A job past its deadline ends `expired`, its text so far being kept."""
    async with worker(pool, redis_url, null_tokens_per_s=100):
        job = await client.submit("hello", seed=9, max_tokens=5000, deadline_s=1.0)
        story = await follow(client, job)
        assert story.reason == "expired"
        assert story.text == expected_text(9, story.last)
        assert story.last < 5000
