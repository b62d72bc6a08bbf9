"""A job that nobody has owned runs while its log is being taken over, and says nothing before."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from servers.fixtures import pool, redis_url, server
from workers.null_workers import command, expected_ids, expected_text, follow, worker
from workers.publisher_bench import EPOCH, JOB_ID, KEY, running_publisher, step_of_job, take_over

from tokenbus.engine.types import FinishReason
from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.scripts.log import Append, Takeover
from tokenbus.worker.messages.publishing import (
    AllLogged,
    Committed,
    HandBack,
    OpenGate,
    Preceded,
    Taken,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from workers.publisher_bench import PublisherBench

    from tokenbus.producer.scripts import Scripts

__all__ = ["pool", "redis_url", "server"]

AHEAD = take_over(is_ahead=True)
NUM_BEFORE, NUM_TOKENS, SEED = 3, 40, 5


async def write_log(scripts: Scripts, job_id: str, epoch: int) -> None:
    """Leave the first tokens of an answer in a log."""
    ids = expected_ids(SEED, NUM_BEFORE)
    ends = [len(expected_text(SEED, count)) for count in range(1, NUM_BEFORE + 1)]
    await scripts.log.takeover([Takeover(job_id, epoch, "earlier")])
    text = expected_text(SEED, NUM_BEFORE)
    await scripts.log.append([Append(job_id, epoch, 0, 1, NUM_BEFORE, text, ids, ends)])


@pytest.fixture
async def bench(redis_url: str, pool: str) -> AsyncIterator[PublisherBench]:
    """Give a publisher whose gate is still closed."""
    async with running_publisher(redis_url, pool) as running:
        yield running


async def test_nothing_is_logged_before_the_takeover(bench: PublisherBench) -> None:
    """A whole answer comes before the server may be asked; it is logged once the log is ours."""
    bench.publisher.obey(AHEAD)
    bench.publisher.obey(step_of_job(300))
    bench.publisher.obey(step_of_job(301, 302, end=FinishReason.LENGTH))
    # Each look takes as many turns of the loop and of the server as an append would.
    for _ in range(20):
        assert await bench.scripts.log.events(JOB_ID) is None
    bench.publisher.obey(OpenGate(0, time.monotonic()))
    await bench.first(Committed)
    events = await bench.scripts.log.events(JOB_ID) or []
    assert [event.ids for event in events] == [(300,), (301, 302), ()]
    assert events[-1].finish is not None
    assert not any(isinstance(report, Taken) for report in bench.reports)


async def test_log_with_tokens_gets_none_that_began_from_nothing(bench: PublisherBench) -> None:
    """A record that lost a second says that nobody owned the job, and its log says otherwise."""
    await write_log(bench.scripts, JOB_ID, EPOCH)
    before = await bench.scripts.log.events(JOB_ID)
    bench.publisher.obey(OpenGate(0, time.monotonic()))
    bench.publisher.obey(AHEAD)
    bench.publisher.obey(step_of_job(300, 301, 302, 303))
    assert (await bench.first(Preceded)).last == NUM_BEFORE
    bench.publisher.session.lose("the server is gone")
    bench.publisher.obey(OpenGate(1, time.monotonic()))
    assert (await bench.first(Preceded)).last == NUM_BEFORE
    bench.publisher.obey(HandBack(KEY))
    assert (await bench.first(AllLogged)).num_logged == NUM_BEFORE
    assert await bench.scripts.log.events(JOB_ID) == before


async def test_worker_goes_on_after_tokens_that_it_knew_nothing_of(
    redis_url: str, pool: str
) -> None:
    """The job runs again from where its log ends, and that costs it none of its attempts."""
    async with await AsyncClient.connect(redis_url, pool=pool) as client:
        job = await client.submit("hello", seed=SEED, max_tokens=NUM_TOKENS)
        await write_log(client.scripts, job.job_id, EPOCH)
        async with worker(pool, redis_url):
            story = await follow(client, job.job_id)
        attempts = await command(
            client.scripts, "HGET", client.scripts.keys.of("job", job.job_id), "attempts"
        )
        assert attempts == b"0"
        assert story.epochs == {EPOCH, EPOCH + 1}
        assert story.ids[0] == expected_ids(SEED, NUM_TOKENS)
        assert story.text == expected_text(SEED, NUM_TOKENS)
        assert story.reason == "length"
