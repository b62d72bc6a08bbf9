"""Many jobs in a few round trips, each accepted or refused by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tokenbus.producer.client import (
    FIRST_SUBMIT_BYTES,
    MAX_SUBMIT_BYTES,
    MAX_SUBMITS,
    AsyncClient,
    Job,
)
from tokenbus.producer.errors import RequestInvalid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.replies import Refused, Submitted
    from tokenbus.producer.scripts import Bounds, NewJob, Scripts


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


async def test_submit_many_spreads_long_prompts(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No round trip carries more than it may, unless a single request does; order stays."""
    queue = client.scripts.queue
    sent: list[int] = []
    submit_many = queue.submit_many

    async def noted(jobs: list[NewJob], bounds: Bounds) -> list[Submitted | Refused]:
        sent.append(sum(len(job.request) for job in jobs))
        assert len(jobs) == 1 or sent[-1] <= MAX_SUBMIT_BYTES
        return await submit_many(jobs, bounds)

    monkeypatch.setattr(queue, "submit_many", noted)
    sizes = [1, 2, MAX_SUBMIT_BYTES + 1, 3, *[MAX_SUBMIT_BYTES // 3] * 4]
    requests = [{"prompt": "x" * size, "id": f"job-{i}"} for i, size in enumerate(sizes)]
    answers = await client.submit_many(requests)
    assert [a.job_id for a in answers if isinstance(a, Job)] == [r["id"] for r in requests]
    assert len(sent) == 4


async def test_submit_many_begins_with_few_long_prompts(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers have the first jobs while the rest is still prepared; short ones go in one trip."""
    queue = client.scripts.queue
    sent: list[int] = []
    submit_many = queue.submit_many

    async def noted(jobs: list[NewJob], bounds: Bounds) -> list[Submitted | Refused]:
        sent.append(len(jobs))
        return await submit_many(jobs, bounds)

    monkeypatch.setattr(queue, "submit_many", noted)
    long = FIRST_SUBMIT_BYTES // 10
    await client.submit_many([{"prompt": "x" * long} for _ in range(120)])
    assert sent[0] < 10 < sent[1] < 20 < sent[2] == sent[3] < 40
    assert sum(sent) == 120
    sent.clear()
    await client.submit_many([{"prompt": "x"} for _ in range(MAX_SUBMITS)])
    assert sent == [MAX_SUBMITS]
