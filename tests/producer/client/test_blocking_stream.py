"""A stream for a thread: read ahead within bounds, and ended whatever happens to the client."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S

from tokenbus.producer.client.blocking import Client
from tokenbus.producer.client.blocking_stream import BlockingStream
from tokenbus.producer.contract.events import Event
from tokenbus.producer.errors import ClientClosed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

NUM_EVENTS = 1000


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in a thread of its own."""
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


def test_slow_thread_gets_all_events_of_which_few_wait(loop: asyncio.AbstractEventLoop) -> None:
    """A consumer that does not keep up holds the reader back, not the memory."""
    num_drawn = 0

    async def events() -> AsyncGenerator[Event, None]:
        nonlocal num_drawn
        for index in range(1, NUM_EVENTS + 1):
            num_drawn += 1
            yield Event("j", 1, 0, index, index)

    for number, event in enumerate(BlockingStream(events(), loop), start=1):
        assert event.to == number
        assert num_drawn - number <= 64
    assert num_drawn == NUM_EVENTS


def test_stream_that_is_left_is_closed(loop: asyncio.AbstractEventLoop) -> None:
    """A thread that stops reading lets go of the subscription."""
    closed = threading.Event()

    async def events() -> AsyncGenerator[Event, None]:
        try:
            yield Event("j", 1, 0, 1, 1)
            await asyncio.sleep(3600)
        finally:
            closed.set()

    stream = iter(BlockingStream(events(), loop))
    assert next(stream).to == 1
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    assert closed.wait(PATIENCE_S)


def test_error_of_the_stream_is_raised_in_the_thread(loop: asyncio.AbstractEventLoop) -> None:
    """What ends the stream in the loop ends it in the thread."""

    async def events() -> AsyncGenerator[Event, None]:
        yield Event("j", 1, 0, 1, 1)
        raise LookupError("gone")

    stream = iter(BlockingStream(events(), loop))
    next(stream)
    with pytest.raises(LookupError, match="gone"):
        next(stream)


def test_closing_the_client_ends_what_other_threads_wait_for(redis_url: str, pool: str) -> None:
    """A stream and a result that wait in other threads raise ClientClosed."""
    client = Client.connect(redis_url, pool)
    job = client.submit("x")
    outcomes: list[type[BaseException]] = []

    def wait_for(call: str) -> None:
        try:
            if call == "stream":
                list(client.stream(job.job_id))
            else:
                client.result(job.job_id)
        except BaseException as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=wait_for, args=(call,)) for call in ("stream", "result")]
    for thread in threads:
        thread.start()
    client.close()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert outcomes == [ClientClosed, ClientClosed]
