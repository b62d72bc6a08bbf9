"""A stream as an object: cancelled, shared by mistake, dropped."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S
from workers.stubs import raw, running, text_of, until

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.contract.events import Event
    from tokenbus.producer.scripts import Scripts

NUM_TOKENS = 300


@pytest.fixture
async def client(redis_url: str, scripts: Scripts) -> AsyncIterator[AsyncClient]:
    """Give a client that looks at nothing by itself before a test has failed."""
    settings = ClientSettings().model_copy(update={"silence_s": PATIENCE_S})
    async with await AsyncClient.connect(redis_url, scripts.keys.pool, settings) as made:
        yield made


async def test_cancelled_waits_lose_nothing(client: AsyncClient) -> None:
    """A stream that is read with time limits brings every index once, whenever a limit strikes."""
    worker, job_id = await running(client)
    stream = client.stream(job_id)
    seen: list[int] = []
    texts: list[str] = []
    num_waits = num_cancelled = 0

    async def write() -> None:
        for index in range(1, NUM_TOKENS + 1):
            await worker.append(job_id, 1, index, index)

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        while not seen or seen[-1] < NUM_TOKENS:
            reading = asyncio.ensure_future(anext(stream))
            # Of different lengths, so that some end between an event's arrival and its reader's
            # next turn; one is not cancelled, for a slow server may need more turns.
            num_waits += 1
            if num_waits % 40:
                for _ in range(num_waits % 40):
                    await asyncio.sleep(0)
                reading.cancel()
            try:
                event = await reading
            except asyncio.CancelledError:
                num_cancelled += 1
                continue
            seen += range(event.start, event.to + 1)
            texts.append(event.text)
    assert seen == list(range(1, NUM_TOKENS + 1))
    assert "".join(texts) == text_of(1, NUM_TOKENS)
    assert num_cancelled > 0


async def test_stream_is_for_one_task(client: AsyncClient) -> None:
    """A second task that reads the same stream is told so, and the first goes on."""
    worker, job_id = await running(client)
    stream = client.stream(job_id)
    await worker.append(job_id, 1, 1, 1)
    await anext(stream)
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="another task"):
        await anext(stream)
    await worker.append(job_id, 1, 2, 2)
    async with asyncio.timeout(PATIENCE_S):
        assert (await reading).to == 2


async def test_dropped_stream_lets_its_channel_go(client: AsyncClient) -> None:
    """A consumer that breaks off its loop without closing the stream leaves no subscription."""
    worker, job_id = await running(client)
    await worker.append(job_id, 1, 1, 1)
    channel = client.scripts.keys.channel(job_id)

    async def num_listening() -> int:
        [(_, number)] = await raw(client.scripts).pubsub_numsub(channel)
        return int(number)

    async for _ in client.stream(job_id):
        break
    gc.collect()

    async def none_listens() -> bool:
        return await num_listening() == 0

    await until(none_listens)


async def test_handed_over_events_and_those_that_are_left_make_one_stream(
    client: AsyncClient,
) -> None:
    """What takes events where they are heard may leave some, or fail: each comes once, in order.

    The end comes to who waits, and nothing is handed over afterwards.
    """
    worker, job_id = await running(client)
    stream = client.stream(job_id)
    seen: list[int] = []
    num_taken = 0

    def take(event: Event) -> bool:
        nonlocal num_taken
        if event.start % 5 == 0:
            return False
        if event.start % 7 == 0:
            raise ValueError(event)
        seen.extend(range(event.start, event.to + 1))
        num_taken += 1
        return True

    async def write() -> None:
        for index in range(1, NUM_TOKENS + 1):
            await worker.append(job_id, 1, index, index)
        await worker.end(job_id, 1, NUM_TOKENS)

    stream.hand_to(take)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        async for event in stream:
            if event.finish is None:
                seen += range(event.start, event.to + 1)
    assert seen == list(range(1, NUM_TOKENS + 1))
    assert num_taken > NUM_TOKENS // 3


async def test_hole_is_read_from_the_log_behind_what_was_handed_over(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that does not follow is not handed over: the log has what is missing."""
    worker, job_id = await running(client)
    stream = client.stream(job_id)
    seen: list[int] = []

    def take(event: Event) -> bool:
        seen.extend(range(event.start, event.to + 1))
        return True

    stream.hand_to(take)
    await worker.append(job_id, 1, 1, 1)
    first = await anext(stream)
    reading = asyncio.ensure_future(anext(stream))
    await worker.append(job_id, 1, 2, 2)

    async def was_handed_over() -> bool:
        return seen == [2]

    await until(was_handed_over)
    with monkeypatch.context() as patch:
        # Which reaches nobody who has subscribed to the channel as streams do.
        patch.setattr(worker.scripts.log, "_publish", "SPUBLISH")
        await worker.append(job_id, 1, 3, 3)
    await worker.append(job_id, 1, 4, 4)

    async def came() -> bool:
        return reading.done() or seen != [2]

    await until(came)
    assert seen == [2]
    event = await reading
    assert (first.to, event.start, event.to) == (1, 3, 4)
