"""Many jobs in a few round trips, each accepted or refused by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tokenbus.producer.client.async_client import AsyncClient, Job
from tokenbus.producer.client.submission import FIRST_SUBMIT_BYTES, MAX_SUBMIT_BYTES, MAX_SUBMITS
from tokenbus.producer.contract.schema import JobRequest, Message
from tokenbus.producer.errors import RequestInvalid, ServerUnreachable
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.contract.new_job import NewJob
    from tokenbus.producer.scripts import Bounds, Scripts
    from tokenbus.producer.scripts.replies import Refused, Submitted


@pytest.fixture
async def client(redis_url: str, scripts: Scripts) -> AsyncIterator[AsyncClient]:
    """Give a client of the pool."""
    # Nothing is tried again: a test whose server leaves has its answer at once.
    settings = ClientSettings(retry_for_s=0)
    async with await AsyncClient.connect(redis_url, scripts.keys.pool, settings) as made:
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


class _Broken(dict[str, object]):
    """A mapping that raises when it is read."""

    def keys(self) -> NoReturn:
        raise LookupError("nothing here")

    __iter__ = keys


WRONG: list[Any] = [
    *(None, 7, b"x", object(), [], ("a",), "\ud800", float("nan"), {}, {7: 1}, {"prompt": 7}),
    {"prompt": "x", "v": 3},
    *({"prompt": "x", "\ud800": 1}, {"prompt": "x", "id": "a\n"}, _Broken(prompt="x")),
    JobRequest.model_construct(prompt="\ud800"),
    JobRequest.build(prompt="x").model_copy(update={"tenant": "a\n"}),
    JobRequest.build(prompt="x").model_copy(update={"priority": "high"}),
    {"messages": [Message.model_construct(role="user", content="\ud800")]},
    {"prompt": "x", "cache_group": "g", "cache_secret": "\ud800" * 20},
]  # fmt: skip


async def test_submit_many_answers_each_whatever_one_is(client: AsyncClient) -> None:
    """Past the first round trip too, no item costs the others their answers."""
    requests: list[Any] = [f"p{i}" for i in range(2 * MAX_SUBMITS)]
    for number, wrong in enumerate(WRONG):
        requests.insert(len(requests) - 7 * number, wrong)
    # Any iterable will do.
    answers = await client.submit_many(iter(requests))
    assert len(answers) == len(requests)
    for request, answer in zip(requests, answers, strict=True):
        is_wrong = any(request is wrong for wrong in WRONG)
        assert isinstance(answer, RequestInvalid if is_wrong else Job), ascii(request)
        assert str(answer).encode()
    assert (await client.scripts.lease.load())["jobs"] == 2 * MAX_SUBMITS
    for wrong in WRONG:
        with pytest.raises(RequestInvalid):
            await client.submit(wrong)


async def test_submit_many_whose_server_leaves_keeps_what_was_answered(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs of later round trips are answered by the error; without any answer it is raised."""
    submit_many, trips = client.scripts.queue.submit_many, 0

    async def leaving(jobs: list[NewJob], bounds: Bounds) -> list[Submitted | Refused]:
        nonlocal trips
        trips += 1
        if trips > 1:
            raise RedisConnectionError("gone")
        return await submit_many(jobs, bounds)

    monkeypatch.setattr(client.scripts.queue, "submit_many", leaving)
    requests = [{"prompt": "x"}] * (MAX_SUBMITS + 2) + [{"prompt": 7}]
    answers = await client.submit_many(requests)
    assert all(isinstance(answer, Job) for answer in answers[:MAX_SUBMITS])
    assert [type(answer) for answer in answers[MAX_SUBMITS:-1]] == [ServerUnreachable] * 2
    assert isinstance(answers[-1], RequestInvalid | ServerUnreachable)
    with pytest.raises(ServerUnreachable):
        await client.submit_many(requests)


async def test_submit_many_counts_reserved_ids_first(client: AsyncClient) -> None:
    """A list that is too short is refused before any job is accepted."""
    with pytest.raises(RequestInvalid, match="reserved_ids"):
        await client.submit_many([{"prompt": "a"}] * 2, reserved_ids=["x~1"])
    assert "jobs" not in await client.scripts.lease.load()


@pytest.mark.parametrize("job_id", ["\ud800", None, 7])
async def test_id_that_no_key_carries_is_refused(client: AsyncClient, job_id: Any) -> None:
    """By every call that takes one."""
    for call in (client.cancel, client.result, client.webhook):
        with pytest.raises(RequestInvalid, match="job_id"):
            await call(job_id)
    with pytest.raises(RequestInvalid, match="job_id"):
        client.stream(job_id)
