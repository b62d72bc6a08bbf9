"""One channel per client: its jobs are heard there, whatever becomes of the connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from workers.stubs import StubWorker, owned_end, raw, text_of, until

from tokenbus.producer.client.async_client import AsyncClient, Job
from tokenbus.producer.client.reading.job_channel import JobChannel
from tokenbus.producer.client.reading.lookup import Lookup
from tokenbus.producer.contract.address import JobAddress
from tokenbus.producer.contract.channel import parse_message
from tokenbus.producer.contract.result import JobCancelled, JobResult
from tokenbus.producer.errors import ProducerError
from tokenbus.producer.scripts import Takeover
from tokenbus.producer.scripts.completion import JobCompletion
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from tokenbus.producer.client.reading.gathering import Outcome
    from tokenbus.producer.contract.events import Event
    from tokenbus.producer.scripts import Scripts

NUM_JOBS = 200
LAST = 3


@pytest.fixture
async def client(
    redis_url: str, scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[AsyncClient]:
    """Give a client that looks at nothing by itself before a test has failed.

    It submits nothing before it hears, however long that takes.
    """
    monkeypatch.setattr("tokenbus.producer.client.async_client._LISTEN_WAIT_S", PATIENCE_S)
    settings = ClientSettings(max_buffered_tokens=50).model_copy(update={"silence_s": PATIENCE_S})
    async with await AsyncClient.connect(redis_url, scripts.keys.pool, settings) as made:
        yield made


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note every look at a job."""
    noted: list[str] = []

    def note(name: str) -> None:
        make: Callable[..., Any] = getattr(Lookup, name)

        def noting(lookup: Lookup, *args: Any, **options: Any) -> Any:
            noted.append(f"{name} {args}")
            return make(lookup, *args, **options)

        monkeypatch.setattr(Lookup, name, noting)

    for name in ("look", "states", "results"):
        note(name)
    return noted


def requests(count: int) -> list[dict[str, Any]]:
    """Make requests."""
    return [{"prompt": "x", "max_tokens": 16} for _ in range(count)]


async def submitted(client: AsyncClient, count: int) -> list[Job]:
    """Submit jobs at once."""
    answers = await client.submit_many(requests(count))
    return [answer for answer in answers if isinstance(answer, Job)]


async def a_worker(scripts: Scripts, count: int, *, is_old: bool = False) -> StubWorker:
    """Let a new worker pull so many jobs."""
    worker = StubWorker(scripts, is_old=is_old)
    await worker.reconcile(pages=10**6)
    while count:
        count -= len((await worker.pull(pages=10**6)).jobs)
    return worker


async def run(worker: StubWorker, jobs: Sequence[Job], last: int = LAST) -> None:
    """Run jobs side by side from their begin to their end, which stays incomplete."""
    await worker.run_all([JobAddress(job.job_id, job.tenant).text for job in jobs], last)


async def read(client: AsyncClient, job: str | Job) -> list[Event]:
    """Read a job's stream to its end."""
    async with asyncio.timeout(PATIENCE_S):
        return [event async for event in client.stream(job)]


def check(events: Sequence[Event], last: int = LAST) -> None:
    """Check that events bring each index once, with its text, and then the end."""
    assert [i for event in events for i in range(event.start, event.to + 1)] == list(
        range(1, last + 1)
    )
    assert "".join(event.text for event in events) == text_of(1, last)
    assert [event.finish is not None for event in events] == [False] * (len(events) - 1) + [True]


async def channels(client: AsyncClient) -> list[str]:
    """Return the channels of the client's pool that somebody listens to."""
    pattern = f"{client.scripts.keys.prefix[:-1]}*"
    return sorted(name.decode() for name in await raw(client.scripts).pubsub_channels(pattern))


async def test_jobs_of_a_client_are_heard_on_one_channel(
    client: AsyncClient, looks: list[str]
) -> None:
    """Two hundred streams subscribe to nothing and look at nothing; others hear each job too."""
    jobs = await submitted(client, NUM_JOBS)
    [channel] = await channels(client)
    assert ":cli:" in channel
    plain = raw(client.scripts).pubsub(ignore_subscribe_messages=True)
    await plain.subscribe(*(job.channel for job in jobs[:3]))
    worker = await a_worker(client.scripts, NUM_JOBS)
    ended: list[Any] = [run(worker, jobs), *(read(client, job) for job in jobs)]
    for events in (await asyncio.gather(*ended))[1:]:
        check(events)
    heard: dict[str, list[Event]] = {job.job_id: [] for job in jobs[:3]}
    async with asyncio.timeout(PATIENCE_S):
        while sum(map(len, heard.values())) < 3 * (LAST + 1):
            message = await plain.get_message(timeout=1)
            if message is not None:
                event = parse_message(message["data"])
                heard[event.job_id].append(event)
    for events in heard.values():
        check(events)
    await plain.aclose()
    assert await channels(client) == [channel]
    assert not looks


async def test_results_of_many_jobs_cost_no_look(client: AsyncClient, looks: list[str]) -> None:
    """Results stand in the order of the requests and are what was stored; a refusal is one too."""
    answers = await client.submit_many([*requests(2), {"prompt": 5}, *requests(NUM_JOBS - 2)])
    jobs = [answer for answer in answers if isinstance(answer, Job)]
    worker = await a_worker(client.scripts, NUM_JOBS)
    async with asyncio.timeout(PATIENCE_S):
        _, found = await asyncio.gather(run(worker, jobs[::-1]), client.results(answers))
    assert isinstance(found[2], ProducerError)
    del found[2]
    assert not looks
    assert [getattr(result, "job_id", "") for result in found] == [job.job_id for job in jobs]
    for job, result in zip(jobs[::40], found[::40], strict=True):
        stored = await client.scripts.log.result(job.job_id)
        assert stored is not None
        assert result == type(result).parse(stored)


async def test_end_without_an_owner_is_heard(client: AsyncClient, looks: list[str]) -> None:
    """A job that is cancelled while it waits ends its stream at once."""
    first, second = await submitted(client, 2)
    stream, results = asyncio.ensure_future(read(client, first)), client.results([second])
    for job in (first, second):
        assert await client.cancel(job)
    async with asyncio.timeout(PATIENCE_S):
        [end], [early] = await asyncio.gather(stream, results)
    assert end.finish is not None
    assert end.finish.reason == "cancelled"
    assert isinstance(early, JobCancelled)
    assert not looks


async def test_events_before_the_stream_are_kept_within_bounds(
    client: AsyncClient, looks: list[str]
) -> None:
    """A short job is read as it was heard, one past the bound from its log."""
    short, long = await submitted(client, 2)
    worker = await a_worker(client.scripts, 2)
    await run(worker, [short])
    await run(worker, [long], last=60)
    check(await read(client, short))
    assert not looks
    check(await read(client, long), last=60)
    assert len(looks) == 1


async def check_all(
    streams: Sequence[asyncio.Future[list[Event]]], results: asyncio.Future[list[Outcome]]
) -> None:
    """Check that streams brought everything and that results are whole."""
    async with asyncio.timeout(PATIENCE_S):
        for events in await asyncio.gather(*streams):
            check(events)
        texts = [each.text for each in await results if isinstance(each, JobResult)]
    assert texts == [text_of(1, LAST)] * len(streams)


async def test_killed_connection_is_read_over(client: AsyncClient) -> None:
    """What was published while the connection was away is read from logs and results."""
    ids = [job.job_id for job in await submitted(client, 40)]
    worker = await a_worker(client.scripts, 40)
    streams = [asyncio.ensure_future(read(client, job_id)) for job_id in ids[:20]]
    results = asyncio.ensure_future(client.results(ids[20:]))
    await client.scripts.log.takeover([Takeover(job_id, 1, worker.name) for job_id in ids])
    await worker.append_all(ids, 1)
    await raw(client.scripts).client_kill_filter(_type="pubsub")
    for index in range(2, LAST + 1):
        await worker.append_all(ids, index)
    await worker.end_all(ids, LAST)
    await check_all(streams, results)


async def test_slow_client_that_is_cut_off_reads_its_logs(client: AsyncClient) -> None:
    """A server that cuts the connection off costs a look at the logs, and one new connection."""
    ids = [job.job_id for job in await submitted(client, 40)]
    worker = await a_worker(client.scripts, 40)
    server = raw(client.scripts)
    [channel] = await channels(client)
    limit = "client-output-buffer-limit"
    before = (await server.config_get(limit))[limit]
    await server.config_set(limit, "pubsub 1mb 1mb 1")
    try:
        streams = [asyncio.ensure_future(read(client, job_id)) for job_id in ids[:20]]
        results = asyncio.ensure_future(client.results(ids[20:]))
        await client.scripts.log.takeover([Takeover(job_id, 1, worker.name) for job_id in ids])
        await worker.append_all(ids, 1)
        transport = client._hub._wire._transport  # type: ignore[union-attr]  # it is open
        transport.pause_reading()  # type: ignore[union-attr]  # it is open
        await worker.append_all(ids, 2)

        async def is_cut_off() -> bool:
            return not await server.publish(channel, b"x" * 2**20)

        await until(is_cut_off)
        await worker.append_all(ids, 3)
        transport.resume_reading()  # type: ignore[union-attr]  # it is open
        await until(lambda: _is_heard(client, channel))
        await worker.end_all(ids, LAST)
        await check_all(streams, results)
        [subscriber] = await server.client_list(_type="pubsub")
        [later] = await submitted(client, 1)
        await run(await a_worker(client.scripts, 1), [later])
        check(await read(client, later.job_id))
        assert [each["id"] for each in await server.client_list(_type="pubsub")] == [
            subscriber["id"]
        ]
    finally:
        await server.config_set(limit, before)


async def test_subscription_in_the_moment_of_a_cut_comes_with_the_next_connection(
    client: AsyncClient,
) -> None:
    """The connection has ended and nobody has been told: nothing is raised where nobody sees it."""
    await submitted(client, 1)
    hub, unseen = client._hub, list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, told: unseen.append(told))
    transport = hub._wire._transport  # type: ignore[union-attr]  # it is open
    transport.abort()  # type: ignore[union-attr]  # it is open
    hub.listen(b"later", JobChannel())
    async with asyncio.timeout(PATIENCE_S):
        while not hub.is_live(b"later"):  # noqa: ASYNC110 -- it has no event
            await asyncio.sleep(0)
    assert unseen == []


async def _is_heard(client: AsyncClient, channel: str) -> bool:
    return channel in await channels(client)


@pytest.mark.parametrize("waits", ["stream", "results"])
async def test_worker_that_does_not_publish_there_is_heard(
    redis_url: str, scripts: Scripts, waits: str
) -> None:
    """A worker of an earlier release is read after a silence, and live from then on."""
    settings = ClientSettings(silence_s=0.1)
    async with await AsyncClient.connect(redis_url, scripts.keys.pool, settings) as client:
        [job] = await submitted(client, 1)
        worker = await a_worker(scripts, 1, is_old=True)
        await worker.start(job.job_id, 1)
        await worker.append(job.job_id, 1, 1, 1)
        if waits == "results":
            reading = asyncio.ensure_future(client.results([job]))
            await worker.end(job.job_id, 1, 1)
            await JobCompletion(scripts).complete(job.job_id, owned_end(job.job_id, 1, 1).finish)
            async with asyncio.timeout(PATIENCE_S):
                [result] = await reading
            assert result.text == text_of(1, 1)  # type: ignore[union-attr]  # it has not failed
            return
        stream = client.stream(job)
        events = [await anext(stream)]

        async def is_subscribed() -> bool:
            [(_, number)] = await raw(scripts).pubsub_numsub(job.channel)
            return bool(number)

        more = asyncio.ensure_future(anext(stream))
        await until(is_subscribed)
        await worker.append(job.job_id, 1, 2, 2)
        async with asyncio.timeout(PATIENCE_S):
            events.append(await more)
            await worker.end(job.job_id, 1, 2)
            events.append(await anext(stream))
        check(events, last=2)


async def test_known_job_and_version_1_are_read_as_before(
    client: AsyncClient, redis_url: str, scripts: Scripts
) -> None:
    """Whoever submits a job again listens to the job's channel; version 1 knows no other."""
    first = await client.submit("x", id="twice", max_tokens=16)
    old = await client.submit("x", v=1, max_tokens=16)
    async with await AsyncClient.connect(redis_url, scripts.keys.pool) as other:
        again = await other.submit("x", id="twice", max_tokens=16)
        assert (first.created, again.created) == (True, False)
        worker = await a_worker(scripts, 2)
        assert set(worker.listens) == {"twice"}
        streams = [asyncio.ensure_future(read(each, first)) for each in (client, other)]
        listens: Callable[[], Any] = lambda: raw(scripts).pubsub_numsub(first.channel)  # noqa: E731 -- typed

        async def is_heard() -> bool:
            return bool((await listens())[0][1])

        await until(is_heard)
        await run(worker, [first, old])
        for events in await asyncio.gather(*streams):
            check(events)
    [(version, found)] = {(event.version, event.job_id) for event in await read(client, old)}
    assert (version, found) == (1, old.job_id)


async def test_tenants_are_told_apart_on_the_channel(client: AsyncClient) -> None:
    """Jobs of two tenants with one id are two jobs, on the channel of one client too."""
    jobs = await client.submit_many(
        {"prompt": "x", "max_tokens": 16, "id": "same", "tenant": tenant} for tenant in ("a", "b")
    )
    worker = await a_worker(client.scripts, 2)
    for address, last in (("same@a", 1), ("same@b", 2)):
        await worker.start(address, 1)
        for index in range(1, last + 1):
            await worker.append(address, 1, index, index)
        await worker.end(address, 1, last)
    async with asyncio.timeout(PATIENCE_S):
        found = await client.results(jobs)
    assert [(each.tenant, each.text) for each in found] == [  # type: ignore[union-attr]  # none failed
        ("a", text_of(1, 1)),
        ("b", text_of(1, 2)),
    ]


async def test_client_that_reads_nothing_stops_listening(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who submits and never reads is not told; the first stream makes the next jobs heard."""
    monkeypatch.setattr("tokenbus.producer.client.reading.client_channel._MAX_UNREAD", 4)
    monkeypatch.setattr("tokenbus.producer.client.reading.client_channel._KEPT_S", 0.0)
    jobs = await submitted(client, 6)
    worker = await a_worker(client.scripts, 6)
    await run(worker, jobs)

    async def is_silent() -> bool:
        return not await channels(client)

    await until(is_silent)
    [unheard] = await submitted(client, 1)
    worker = await a_worker(client.scripts, 1)
    assert not worker.listens
    await run(worker, [unheard])
    check(await read(client, unheard))
    await submitted(client, 1)
    worker = await a_worker(client.scripts, 1)
    assert worker.listens


async def test_name_of_the_channel_is_told_to_the_server_alone(
    client: AsyncClient, redis_url: str, scripts: Scripts
) -> None:
    """Secrets are long, drawn per client, and in no text that is shown."""
    [job] = await submitted(client, 1)
    worker = StubWorker(scripts)
    await worker.reconcile()
    [pulled] = (await worker.pull()).jobs
    assert len(pulled.listen) == 22
    for shown in (job, pulled, client, client._client_channel):
        assert pulled.listen not in repr(shown)
    async with await AsyncClient.connect(redis_url, scripts.keys.pool) as other:
        assert len(other._client_channel.listen) == 22
        assert other._client_channel.listen != pulled.listen
