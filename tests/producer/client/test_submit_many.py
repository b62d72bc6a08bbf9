"""Many jobs in a few round trips, each accepted or refused by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tokenbus.producer.client.async_client import (
    FIRST_SUBMIT_BYTES,
    MAX_SUBMIT_BYTES,
    MAX_SUBMITS,
    AsyncClient,
    Job,
)
from tokenbus.producer.errors import RequestInvalid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.contract.new_job import NewJob
    from tokenbus.producer.scripts import Bounds, Scripts
    from tokenbus.producer.scripts.replies import Refused, Submitted


@pytest.fixture
async def client(redis_url: str, scripts: Scripts) -> AsyncIterator[AsyncClient]:
    """Give a client of the pool."""
    async with await AsyncClient.connect(redis_url, scripts.keys.pool) as made:
        yield made


async def test_submit_many_answers_each_for_itself(client: AsyncClient) -> None:
    """Among many requests a wrong one is refused alone, in its place."""
    requests: list[dict[str, object]] = [{"prompt": f"p{i}"} for i in range(300)]
    requests[7] = {"prompt": 7}
    requests[9] = {"prompt": "x", "n": 0}
    answers = await client.submit_many(requests)
    assert [i for i, answer in enumerate(answers) if not isinstance(answer, Job)] == [7, 9]
    assert isinstance(answers[7], RequestInvalid)
    assert (await client.scripts.lease.load())["jobs"] == 298


@pytest.fixture
def sent(client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> list[list[NewJob]]:
    """Note what each round trip of the client carries."""
    trips: list[list[NewJob]] = []
    submit_many = client.scripts.queue.submit_many

    async def noted(jobs: list[NewJob], bounds: Bounds) -> list[Submitted | Refused]:
        trips.append(jobs)
        return await submit_many(jobs, bounds)

    monkeypatch.setattr(client.scripts.queue, "submit_many", noted)
    return trips


async def test_submit_many_spreads_long_prompts(
    client: AsyncClient, sent: list[list[NewJob]]
) -> None:
    """No round trip carries more than it may, unless a single request does; order stays."""
    sizes = [1, 2, MAX_SUBMIT_BYTES + 1, 3, *[MAX_SUBMIT_BYTES // 3] * 4]
    requests = [{"prompt": "x" * size, "id": f"job-{i}"} for i, size in enumerate(sizes)]
    answers = await client.submit_many(requests)
    assert [a.job_id for a in answers if isinstance(a, Job)] == [r["id"] for r in requests]
    for jobs in sent:
        assert len(jobs) == 1 or sum(len(job.request) for job in jobs) <= MAX_SUBMIT_BYTES
    assert len(sent) == 4


async def test_submit_many_begins_with_few_long_prompts(
    client: AsyncClient, sent: list[list[NewJob]]
) -> None:
    """Workers have the first jobs while the rest is still prepared; short ones go in one trip."""
    long = FIRST_SUBMIT_BYTES // 10
    await client.submit_many([{"prompt": "x" * long} for _ in range(120)])
    counts = [len(jobs) for jobs in sent]
    assert counts[0] < 10 < counts[1] < 20 < counts[2] == counts[3] < 40
    assert sum(counts) == 120
    sent.clear()
    await client.submit_many([{"prompt": "x"} for _ in range(MAX_SUBMITS)])
    assert [len(jobs) for jobs in sent] == [MAX_SUBMITS]
