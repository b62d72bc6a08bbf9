"""Streams: every index once and in order, whatever happens between server and reader."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S, until_within
from workers.stubs import StubWorker, owned_end, raw, running, text_of, tokens, until

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import (
    ClientClosed,
    CursorInvalid,
    JobDropped,
    JobForgotten,
    JobLost,
    JobUnknown,
)
from tokenbus.producer.scripts.completing import Completed, Retention
from tokenbus.producer.scripts.completion import JobCompletion
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.contract.events import Event
    from tokenbus.producer.scripts import Scripts


@pytest.fixture
async def client(redis_url: str, scripts: Scripts) -> AsyncIterator[AsyncClient]:
    """Give a client that looks at silent jobs soon and holds few tokens back."""
    settings = ClientSettings(silence_s=0.2, max_buffered_tokens=50)
    async with await AsyncClient.connect(redis_url, scripts.keys.pool, settings) as made:
        yield made


async def finish(client: AsyncClient, worker: StubWorker, job_id: str, last: int) -> None:
    """Commit and complete a job."""
    await worker.end(job_id, 1, last)
    await JobCompletion(client.scripts).complete(job_id, owned_end(job_id, 1, last).finish)


async def rest(client: AsyncClient, job_id: str, cursor: int = 0) -> list[Event]:
    """Read a stream to its end."""
    async with asyncio.timeout(PATIENCE_S):
        return [event async for event in client.stream(job_id, cursor)]


def check(events: list[Event], cursor: int, last: int) -> None:
    """Check that events bring each index after `cursor` once, with its text, and then the end."""
    assert [i for event in events for i in range(event.start, event.to + 1)] == list(
        range(cursor + 1, last + 1)
    )
    assert "".join(event.text for event in events) == text_of(cursor + 1, last)
    assert [event.finish is not None for event in events] == [False] * (len(events) - 1) + [True]


async def take(stream: AsyncIterator[Event], last: int) -> list[Event]:
    """Take events until the index `last` was seen."""
    events: list[Event] = []
    async with asyncio.timeout(PATIENCE_S):
        while not events or events[-1].to < last:
            events.append(await anext(stream))
    return events


async def test_stream_joins_log_and_live_events(client: AsyncClient) -> None:
    """A reader that comes in the middle replays the log and goes on live, nothing twice."""
    worker, job_id = await running(client)
    await worker.append(job_id, 1, 1, 5)
    stream = client.stream(job_id)
    events = await take(stream, 5)
    for index in range(6, 11):
        await worker.append(job_id, 1, index, index)
    await finish(client, worker, job_id, 10)
    events += [event async for event in stream]
    check(events, 0, 10)


@pytest.mark.parametrize("cursor", range(8))
async def test_cursor_inside_an_entry_cuts_it(client: AsyncClient, cursor: int) -> None:
    """A resume at any index gets exactly the rest, live log or stored result alike."""
    worker, job_id = await running(client)
    await worker.append(job_id, 1, 1, 3)
    await worker.append(job_id, 1, 4, 7)
    await worker.end(job_id, 1, 7)
    check(await rest(client, job_id, cursor), cursor, 7)
    await finish(client, worker, job_id, 7)
    await raw(client.scripts).delete(client.scripts.keys.log(job_id))
    check(await rest(client, job_id, cursor), cursor, 7)


async def test_terminal_event_reaches_a_reader_that_is_up_to_date(client: AsyncClient) -> None:
    """A reader whose cursor is the last index still gets the end."""
    worker, job_id = await running(client)
    await worker.append(job_id, 1, 1, 3)
    await worker.end(job_id, 1, 3)
    [end] = await rest(client, job_id, 3)
    assert end.finish is not None


async def test_lost_messages_are_read_from_the_log(client: AsyncClient) -> None:
    """What was logged but never arrived is noticed at the next message, and by silence."""
    worker, job_id = await running(client)
    stream = client.stream(job_id)
    await worker.append(job_id, 1, 1, 1)
    events = await take(stream, 1)
    key = client.scripts.keys.log(job_id)
    await raw(client.scripts).xadd(key, {"e": '[0,2,"002 ",[2],[8]]'}, "1-2")
    await worker.append(job_id, 1, 3, 3)
    events += await take(stream, 3)
    await raw(client.scripts).xadd(key, {"e": '[0,4,"004 ",[4],[16]]'}, "1-4")
    events += await take(stream, 4)
    await finish(client, worker, job_id, 4)
    events += [event async for event in stream]
    check(events, 0, 4)


async def test_stream_outlives_its_connection(client: AsyncClient) -> None:
    """Every connection is cut while tokens flow; the stream goes on without a gap."""
    worker, job_id = await running(client)
    stream = client.stream(job_id)
    await worker.append(job_id, 1, 1, 1)
    events = await take(stream, 1)
    for index in range(2, 12):
        await raw(client.scripts).client_kill_filter(_type="pubsub", skipme=True)
        await worker.append(job_id, 1, index, index)
    await finish(client, worker, job_id, 11)
    async with asyncio.timeout(PATIENCE_S):
        events += [event async for event in stream]
    check(events, 0, 11)


async def test_slow_consumer_gets_merged_events(client: AsyncClient) -> None:
    """A reader that does not keep up gets fewer, larger events, and misses nothing."""
    worker, job_id = await running(client)
    stream = client.stream(job_id)
    await worker.append(job_id, 1, 1, 1)
    events = await take(stream, 1)
    for first in range(2, 600, 13):
        batch = [tokens(job_id, 1, i, i) for i in range(first, first + 13)]
        await client.scripts.log.append(batch)
    await worker.end(job_id, 1, 599)
    events += [event async for event in stream]
    check(events, 0, 599)
    assert len(events) < 150


async def test_two_streams_of_one_job_do_not_disturb_each_other(client: AsyncClient) -> None:
    """Readers share the connection and the channel; one may leave while the other goes on."""
    worker, job_id = await running(client)
    first, second = client.stream(job_id), client.stream(job_id)
    await worker.append(job_id, 1, 1, 2)
    await take(first, 2)
    events = await take(second, 2)
    await first.aclose()
    await worker.append(job_id, 1, 3, 3)
    await finish(client, worker, job_id, 3)
    events += [event async for event in second]
    check(events, 0, 3)


async def test_many_streams_use_one_connection(client: AsyncClient, redis_url: str) -> None:
    """A hundred open streams of jobs of others cost the server one subscriber."""
    async with await AsyncClient.connect(redis_url, client.scripts.keys.pool) as other:
        jobs = [await other.submit("x") for _ in range(100)]
    waiting = [asyncio.create_task(rest(client, job.job_id)) for job in jobs]
    redis = raw(client.scripts)

    async def num_channels() -> int:
        return len(await redis.pubsub_channels(f"{{tb:{client.scripts.keys.pool}*"))

    async def all_open() -> bool:
        return await num_channels() == 100

    async def none_open() -> bool:
        return await num_channels() == 0

    await until(all_open)
    subscribers = [c for c in await redis.client_list(_type="pubsub") if int(c["sub"]) >= 100]
    assert len(subscribers) == 1
    for job in jobs:
        await client.cancel(job.job_id)
    for events in await asyncio.gather(*waiting):
        check(events, 0, 0)
    await until(none_open)


async def test_lost_job_is_reported_soon(client: AsyncClient) -> None:
    """A reader whose job the server no longer knows is told, within 5 s, not left waiting.

    The limit is a promise: it looks after its job each time that this was silent for two seconds.
    """
    worker, job_id = await running(client)
    stream = client.stream(job_id)
    await worker.append(job_id, 1, 1, 1)
    await take(stream, 1)
    keys = client.scripts.keys
    await raw(client.scripts).delete(keys.of("job", job_id), keys.log(job_id))
    reading = asyncio.ensure_future(anext(stream))
    await until_within(reading.done, 5)
    with pytest.raises(JobLost):
        await reading


async def test_done_job_without_log_and_result_is_lost(client: AsyncClient) -> None:
    """A record that outlived log and result does not make a reader wait."""
    worker, job_id = await running(client)
    await finish(client, worker, job_id, 0)
    keys = client.scripts.keys
    await raw(client.scripts).delete(keys.log(job_id), keys.result(job_id))
    with pytest.raises(JobLost):
        await rest(client, job_id)


async def test_rolled_back_log_keeps_what_was_shown(client: AsyncClient) -> None:
    """A reader ahead of a log that lost its tail shows nothing twice once it is restored."""
    worker, job_id = await running(client)
    stream = client.stream(job_id)
    await worker.append(job_id, 1, 1, 2)
    key = client.scripts.keys.log(job_id)
    before = await raw(client.scripts).dump(key)
    await worker.append(job_id, 1, 3, 4)
    events = await take(stream, 4)
    await raw(client.scripts).restore(key, 0, before, replace=True)
    for index in range(3, 7):
        await worker.append(job_id, 1, index, index)
    await finish(client, worker, job_id, 6)
    events += [event async for event in stream]
    check(events, 0, 6)


async def test_strangers_messages_are_left_out(client: AsyncClient) -> None:
    """What others publish on a job's channel neither ends nor disturbs its streams."""
    worker, job_id = await running(client)
    stream = client.stream(job_id)
    await worker.append(job_id, 1, 1, 1)
    events = await take(stream, 1)
    channel = client.scripts.keys.channel(job_id)
    for message in (b"\xff", b"[]", b"7", b'{"v":1}', b'{"v":9,"job":"x"}', b"null"):
        await raw(client.scripts).publish(channel, message)
    await finish(client, worker, job_id, 1)
    events += [event async for event in stream]
    check(events, 0, 1)


async def test_unknown_job_and_wrong_cursor_are_told_at_once(client: AsyncClient) -> None:
    """A stream of nothing, or from nowhere, raises instead of waiting."""
    with pytest.raises(JobUnknown):
        await rest(client, "nobody")
    with pytest.raises(CursorInvalid):
        await rest(client, "nobody", -1)


async def test_cursor_beyond_the_end_is_told(client: AsyncClient) -> None:
    """Nothing can follow such a cursor; it is refused by the end, not skipped in silence."""
    worker, job_id = await running(client)
    await worker.append(job_id, 1, 1, 3)
    early = asyncio.ensure_future(rest(client, job_id, 9))
    await finish(client, worker, job_id, 3)
    for reading in (early, rest(client, job_id, 4)):
        with pytest.raises(CursorInvalid, match="last token, which is 3"):
            await reading
    assert len(await rest(client, job_id, 3)) == 1


async def test_cursor_of_an_expired_job_is_told_so(client: AsyncClient) -> None:
    """What was kept of a job is gone after its time: it was not lost, nor never there."""
    worker, job_id = await running(client)
    await worker.append(job_id, 1, 1, 3)
    await finish(client, worker, job_id, 3)
    keys = client.scripts.keys
    await raw(client.scripts).delete(keys.of("job", job_id), keys.log(job_id), keys.result(job_id))
    with pytest.raises(JobForgotten, match="expired"):
        await rest(client, job_id, 2)


async def test_dropped_result_is_told_to_whoever_asks(client: AsyncClient) -> None:
    """Whatever the cursor, and however long after: the result went for room, it was not lost.

    A reader that is amid the job has read it before, or is told the same.
    """
    bounded = JobCompletion(client.scripts, Retention(pool_bytes=0, tenant_bytes=1))
    job_ids: list[str] = []
    for _ in range(2):
        worker, job_id = await running(client)
        stream = client.stream(job_id)
        await worker.append(job_id, 1, 1, 3)
        await take(stream, 3)
        end = await worker.end(job_id, 1, 3)
        check([event async for event in stream], 3, 3)
        await bounded.complete_many([Completed.of(job_id, end.finish)])
        job_ids.append(job_id)
    keys, redis = client.scripts.keys, raw(client.scripts)
    for key_that_goes in ("none", keys.result(job_ids[0])):
        await redis.delete(key_that_goes)
        for cursor in (0, 2, 3):
            with pytest.raises(JobDropped, match="room"):
                await rest(client, job_ids[0], cursor)
        with pytest.raises(JobDropped, match="room"):
            await client.result(job_ids[0])
    check(await rest(client, job_ids[1]), 0, 3)
    status = await client.status()
    assert (status.dropped_jobs, status.kept_bytes > 0) == (1, True)


async def test_closed_client_wakes_its_streams(redis_url: str, scripts: Scripts) -> None:
    """Closing a client ends streams that wait, with an error of their own."""
    # Who submitted it reads a channel of its own.
    async with await AsyncClient.connect(redis_url, scripts.keys.pool) as submitter:
        job = await submitter.submit("x")
    client = await AsyncClient.connect(redis_url, scripts.keys.pool)
    waiting = asyncio.create_task(rest(client, job.job_id))

    async def is_subscribed() -> bool:
        return bool(await raw(scripts).pubsub_numsub(job.channel) == [(job.channel.encode(), 1)])

    await until(is_subscribed)
    await client.close()
    with pytest.raises(ClientClosed):
        await waiting
    with pytest.raises(ClientClosed):
        await anext(client.stream(job.job_id))
