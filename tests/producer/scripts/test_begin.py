"""The begin script: a start from nothing creates its log, or is told what stands there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S
from redis.exceptions import ResponseError
from workers.stubs import indices, num_ends, orphan_of, owned_end, pulled, raw, tokens

from tokenbus.producer.contract.events import Finish
from tokenbus.producer.contract.keys import LOG_KEYS
from tokenbus.producer.scripts import Begin
from tokenbus.producer.scripts.log import BELT_MS, Takeover
from tokenbus.producer.scripts.replies import JobState, LogReply, LogStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.completion import JobCompletion

    Hear = Callable[[int], Awaitable[tuple[list[bytes], list[bytes]]]]

J, W = "j-1", "w-1"
CLIENT = "c" * 22
FIRST = Begin(J, 1, "1", [tokens(J, 1, 1, 1)])
LATER = replace(FIRST, tokens=[tokens(J, 1, 1, 2)])
END = owned_end(J, 1, 3)
WHOLE = replace(FIRST, tokens=[tokens(J, 1, 1, 2), tokens(J, 1, 3, 3)], end=END)
NOTHING = replace(FIRST, tokens=[], end=owned_end(J, 1, 0, "cancelled"))


async def begin(scripts: Scripts, item: Begin, worker: str = W) -> LogReply:
    """Make the call for one job."""
    [reply] = await scripts.log.begin([item], worker)
    return reply


async def entries(scripts: Scripts) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Return all entries of the job's log."""
    found: list[tuple[bytes, dict[bytes, bytes]]] = await raw(scripts).xrange(scripts.keys.log(J))
    return found


async def test_first_tokens_make_what_takeover_and_append_would(scripts: Scripts) -> None:
    """Marker, tokens and belt are those of two calls; the marker names the start beside them."""
    reply = await begin(scripts, FIRST)
    assert reply == LogReply(LogStatus.OK, 1, 1, entries=2)
    made = await entries(scripts)
    assert await raw(scripts).pttl(scripts.keys.log(J)) > BELT_MS / 2
    await raw(scripts).delete(scripts.keys.log(J))
    await scripts.log.takeover([Takeover(J, 1, W)])
    await scripts.log.append([tokens(J, 1, 1, 1)])
    (marker_id, marker), entry = await entries(scripts)
    assert made == [(marker_id, marker | {b"start": b"1"}), entry]
    [reply] = await scripts.log.append([replace(tokens(J, 1, 2, 2), entries=2)])
    assert reply.status is LogStatus.OK


@pytest.mark.parametrize("item", [WHOLE, NOTHING], ids=["whole", "without-tokens"])
async def test_whole_answer_is_what_the_calls_one_by_one_make(
    scripts: Scripts, item: Begin
) -> None:
    """Entries, result and their TTLs are those of takeover, append and end."""
    keys, redis = scripts.keys, raw(scripts)
    assert item.end is not None
    last = item.end.last
    assert await begin(scripts, item) == LogReply(LogStatus.OK, 1, last, item.end.finish)
    made = await entries(scripts), await redis.get(keys.result(J))
    for key in (keys.log(J), keys.result(J)):
        assert await redis.pttl(key) > BELT_MS / 2
    await redis.delete(keys.log(J), keys.result(J))
    await scripts.log.takeover([Takeover(J, 1, W)])
    await scripts.log.append(item.tokens)
    [reply] = await scripts.log.end([item.end])
    assert (reply.status, reply.last) == (LogStatus.OK, last)
    (marker_id, marker), *rest = await entries(scripts)
    assert made == (
        [(marker_id, marker | {b"start": b"1"}), *rest],
        await redis.get(keys.result(J)),
    )


async def test_start_that_is_made_again_knows_its_log(scripts: Scripts) -> None:
    """After a lost answer it is told where its log ends, and nothing is written."""
    await begin(scripts, FIRST)
    before = await entries(scripts)
    for again in (FIRST, LATER, WHOLE):
        assert await begin(scripts, again) == LogReply(LogStatus.ALREADY, 1, 1, entries=2)
    assert await entries(scripts) == before


@pytest.mark.parametrize("item", [FIRST, WHOLE], ids=["first-tokens", "whole"])
async def test_log_of_any_other_start_stays_as_it_is(scripts: Scripts, item: Begin) -> None:
    """Another worker, another start of this one, or a takeover: it is told how long that log is."""
    others: list[tuple[Callable[[], Awaitable[object]], int]] = [
        (lambda: begin(scripts, FIRST, "w-2"), 1),
        (lambda: begin(scripts, replace(FIRST, start="2")), 1),
        (lambda: scripts.log.takeover([Takeover(J, 1, W)]), 0),
    ]
    for make, last in others:
        await make()
        before = await entries(scripts)
        reply = await begin(scripts, item)
        assert reply == LogReply(LogStatus.LOG, 1, last, entries=len(before))
        assert await entries(scripts) == before
        await raw(scripts).delete(scripts.keys.log(J))


@pytest.mark.parametrize("item", [FIRST, WHOLE, NOTHING], ids=["first", "whole", "nothing"])
async def test_start_is_fenced_by_a_later_owner(scripts: Scripts, item: Begin) -> None:
    """A reaper or heir that has taken the log over keeps it."""
    await scripts.log.takeover([Takeover(J, 3, "heir")])
    before = await entries(scripts)
    reply = await begin(scripts, item)
    assert (reply.status, reply.epoch) == (LogStatus.FENCED, 3)
    assert await entries(scripts) == before


async def test_end_that_stands_is_told_to_a_start(scripts: Scripts) -> None:
    """The owner's own, whose answer was lost, or one without an owner: it completes what stands."""
    await begin(scripts, WHOLE)
    assert await begin(scripts, WHOLE) == LogReply(LogStatus.TERMINAL, 1, 3, END.finish)
    assert await num_ends(scripts, J) == 1
    await raw(scripts).delete(scripts.keys.log(J), scripts.keys.result(J))
    ended = replace(owned_end(J, 2, 0, "cancelled"), owned=False)
    await scripts.log.end([ended])
    reply = await begin(scripts, WHOLE)
    assert (reply.status, Finish.parse(reply.finish).reason) == (LogStatus.TERMINAL, "cancelled")
    assert await num_ends(scripts, J) == 1


async def test_batch_of_starts_answers_each_job_for_itself(scripts: Scripts) -> None:
    """A log of the wrong type fails alone; more than a slice of jobs is answered in order."""
    ids = [f"j-{number}" for number in range(70)]
    await raw(scripts).set(scripts.keys.log(ids[1]), "not a stream")
    await scripts.log.takeover([Takeover(ids[66], 2, W)])
    items = [Begin(job_id, 1, "1", [tokens(job_id, 1, 1, 1)]) for job_id in ids]
    replies = await scripts.log.begin(items, W)
    odd = {1: LogStatus.ERROR, 66: LogStatus.FENCED}
    assert [reply.status for reply in replies] == [
        odd.get(number, LogStatus.OK) for number in range(70)
    ]
    assert await indices(scripts, ids[69]) == [1]


@pytest.mark.parametrize("item", [FIRST, WHOLE], ids=["first-tokens", "whole"])
async def test_dead_starter_is_followed_by_an_heir(
    scripts: Scripts, completion: JobCompletion, item: Begin
) -> None:
    """A reaper finds the log as after a takeover: a crash is counted, or the end completed."""
    worker = await pulled(scripts, J)
    await begin(scripts, item, worker.name)
    await worker.die()
    await completion.reap("reaper", await orphan_of(scripts), completion._clock())
    record = await scripts.queue.record(J)
    assert record is not None
    if item.end is None:
        assert (record.state, record.attempts) == (JobState.WAITING, 1)
        assert (await begin(scripts, WHOLE, worker.name)).status is LogStatus.FENCED
    else:
        assert record.state is JobState.DONE
        reply = await begin(scripts, item, "w-late")
        assert reply == LogReply(LogStatus.TERMINAL, 1, 3, END.finish)
        assert await entries(scripts) == []


async def test_starter_that_was_reaped_before_it_began_changes_nothing_of_the_job(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """There was no log to fence it by: the heir goes on behind its tokens, and it is refused."""
    worker = await pulled(scripts, J)
    await worker.die()
    await completion.reap("reaper", await orphan_of(scripts), completion._clock())
    record = await scripts.queue.record(J)
    assert record is not None
    assert (record.state, record.attempts) == (JobState.WAITING, 0)
    assert (await begin(scripts, LATER, worker.name)).status is LogStatus.OK
    [reply] = await scripts.log.takeover([Takeover(J, 3, "heir")])
    assert (reply.status, reply.last) == (LogStatus.OK, 2)
    assert (await worker.append(J, 1, 3, 3)).status is LogStatus.FENCED
    await scripts.log.append([tokens(J, 3, 3, 4)])
    assert await indices(scripts, J) == [1, 2, 3, 4]


@pytest.fixture
async def hear(scripts: Scripts) -> AsyncIterator[Hear]:
    """Listen on the job's channel and on the client's; give who waits for so many messages."""
    listener = raw(scripts).pubsub()
    own = scripts.keys.channel(J)
    client = f"{scripts.keys.log_prefix(0)}{LOG_KEYS['cli']}{CLIENT}"
    await listener.subscribe(own, client)
    for _ in (own, client):
        await listener.get_message(timeout=PATIENCE_S)

    async def next_message() -> tuple[str, bytes]:
        message = await listener.get_message(timeout=PATIENCE_S)
        assert message is not None
        return message["channel"].decode(), message["data"]

    async def hear(count: int) -> tuple[list[bytes], list[bytes]]:
        heard: dict[str, list[bytes]] = {own: [], client: []}
        for _ in range(count):
            channel, text = await next_message()
            heard[channel].append(text)
        # What was published besides would come before this.
        await raw(scripts).publish(own, b"over")
        assert await next_message() == (own, b"over")
        return heard[own], heard[client]

    yield hear
    await listener.aclose()


@pytest.mark.parametrize("entries", [0, 2], ids=["compared", "counted"])
async def test_client_hears_of_its_jobs_what_their_channels_say(
    scripts: Scripts, hear: Hear, entries: int
) -> None:
    """Each message of a job that names its client's channel is there too, byte for byte."""
    await begin(scripts, replace(FIRST, listen=CLIENT))
    other = Begin("j-2", 1, "2", [tokens("j-2", 1, 1, 1)])
    await begin(scripts, other)
    appends = [replace(tokens(job_id, 1, 2, 2), entries=entries) for job_id in ("j-2", J)]
    await scripts.log.append([appends[0], replace(appends[1], listen=CLIENT)])
    await scripts.log.end([replace(owned_end(J, 1, 2), listen=CLIENT)])
    own, client = await hear(6)
    assert client == own
    assert len(own) == 3


async def test_begin_that_comes_after_its_lease_begins_nothing(scripts: Scripts) -> None:
    """Log and result of a job that another has ended may be gone: nothing else would tell."""
    seconds, _ = await raw(scripts).time()
    for item in (FIRST, WHOLE):
        with pytest.raises(ResponseError, match="UNLEASED"):
            await scripts.log.begin([item], W, (seconds - 10) * 1000)
    assert await entries(scripts) == []
    assert await scripts.log.result(J) is None
    [reply] = await scripts.log.begin([WHOLE], W, (seconds + 3600) * 1000)
    assert reply.status is LogStatus.OK


async def test_client_hears_a_whole_answer(scripts: Scripts, hear: Hear) -> None:
    """Tokens and end, in order, on both channels."""
    await begin(scripts, replace(WHOLE, listen=CLIENT))
    own, client = await hear(6)
    assert client == own
    assert [b'"finish"' in message for message in own] == [False, False, True]


async def test_job_without_a_client_is_heard_on_its_own_channel_alone(
    scripts: Scripts, hear: Hear
) -> None:
    """Nothing else is published where a job names no client."""
    await begin(scripts, FIRST)
    await scripts.log.append([tokens(J, 1, 2, 2)])
    await scripts.log.end([owned_end(J, 1, 2)])
    own, client = await hear(3)
    assert (len(own), client) == (3, [])
