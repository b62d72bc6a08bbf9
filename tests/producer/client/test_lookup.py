"""Looking jobs up: a crowd shares round trips, and nobody pays for what is wrong with another."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from workers.stubs import StubWorker, a_job, raw, submit

from tokenbus.producer.client.reading.lookup import KnownJob, Lookup
from tokenbus.producer.scripts.replies import JobState

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts

NUM_JOBS = 200
# More entries than one page of a log's reading.
NUM_ENTRIES = 1200


@pytest.fixture
def trips(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many commands go in each round trip."""
    noted: list[int] = []
    make = raw(scripts).pipeline

    def noting(**options: Any) -> Any:
        pipeline = make(**options)
        execute = pipeline.execute

        async def counted(**given: Any) -> Any:
            noted.append(len(pipeline.command_stack))
            return await execute(**given)

        pipeline.execute = counted
        return pipeline

    monkeypatch.setattr(scripts.redis, "pipeline", noting)
    return noted


async def logged(scripts: Scripts, job_id: str, last: int) -> None:
    """Submit a job and log tokens for it, an entry each."""
    await submit(scripts, a_job(job_id))
    worker = StubWorker(scripts)
    await worker.start(job_id, 1)
    for index in range(1, last + 1):
        await worker.append(job_id, 1, index, index)


async def test_crowd_shares_round_trips_and_each_gets_its_own(
    scripts: Scripts, trips: list[int]
) -> None:
    """Two hundred jobs take four round trips; who asks alone needs one of three commands."""
    names = [f"s{number % 3}-{number}" for number in range(NUM_JOBS)]
    for number, name in enumerate(names[:20]):
        await logged(scripts, name, number)
    lookup = Lookup(scripts)
    found = await asyncio.gather(*(lookup.look(name, 2) for name in names))
    assert sorted(trips) == [3 * 8, *[3 * 64] * 3]
    for number, known in enumerate(found[:20]):
        assert known.record is not None
        assert (known.record.job_id, known.record.state) == (names[number], JobState.WAITING)
        assert [event.start for event in known.events or ()] == list(range(3, number + 1))
    assert found[20:] == [KnownJob(None, None, None)] * (NUM_JOBS - 20)
    del trips[:]
    assert (await lookup.look(names[3], 0)).events is not None
    assert trips == [3]


async def test_long_log_is_read_to_its_beginning(scripts: Scripts) -> None:
    """A log of several pages is read as far back as the cursor."""
    await logged(scripts, "s0-long", NUM_ENTRIES)
    lookup = Lookup(scripts)
    for cursor in (0, 5, NUM_ENTRIES - 3):
        events = (await lookup.look("s0-long", cursor)).events or []
        assert [event.start for event in events] == list(range(cursor + 1, NUM_ENTRIES + 1))


async def test_what_is_wrong_with_one_job_is_nobody_elses(scripts: Scripts) -> None:
    """A log that is something else is one job's trouble, and who gives up harms nobody."""
    await logged(scripts, "s0-good", 3)
    await raw(scripts).set(scripts.keys.log("s0-bad"), "no stream")
    lookup = Lookup(scripts)
    given_up = asyncio.create_task(lookup.look("s0-good", 0))
    bad, good = (asyncio.create_task(lookup.look(name, 0)) for name in ("s0-bad", "s0-good"))
    await asyncio.sleep(0)
    given_up.cancel()
    with pytest.raises(ResponseError):
        await bad
    assert len((await good).events or ()) == 3
    assert given_up.cancelled()


async def test_everyone_hears_that_the_server_is_away(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round trip that fails raises for all that it was made for, and the next goes out anew."""
    await logged(scripts, "s0-j", 1)
    make = raw(scripts).pipeline

    def broken(**options: Any) -> Any:
        pipeline = make(**options)

        async def fail(**_: Any) -> Any:
            raise RedisConnectionError("gone")

        pipeline.execute = fail
        return pipeline

    lookup = Lookup(scripts)
    with monkeypatch.context() as away:
        away.setattr(scripts.redis, "pipeline", broken)
        asked = (lookup.look("s0-j", 0) for _ in range(3))
        answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(answer) for answer in answers] == [RedisConnectionError] * 3
    assert len((await lookup.look("s0-j", 0)).events or ()) == 1
