"""A job that nobody has owned runs at once; its first tokens, or its whole answer, make its log."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from servers.fixtures import pool, redis_url, server
from workers.null_workers import expected_ids, expected_text, follow, worker
from workers.publisher_bench import EPOCH, JOB_ID, KEY, running_publisher, step_of_job, take_over
from workers.stubs import raw, until
from workers.stubs import tokens as stub_tokens

from tokenbus.engine.types import FinishReason
from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.contract.events import Event, Failure, Finish
from tokenbus.producer.contract.result import JobResult
from tokenbus.producer.scripts.log import Append, Begin, LogScripts, Takeover
from tokenbus.producer.scripts.replies import LogStatus
from tokenbus.producer.scripts.runner import ScriptRunner
from tokenbus.worker.messages.publishing import (
    AllLogged,
    Committed,
    Decide,
    HandBack,
    OpenGate,
    Preceded,
    Progress,
    Taken,
)
from tokenbus.worker.publishing import overdue

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


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the calls on logs, by the names of their scripts."""
    noted: list[str] = []
    run = ScriptRunner.run

    async def noting(runner: ScriptRunner, name: str, *args: Any, **named: Any) -> Any:
        noted.append(name)
        return await run(runner, name, *args, **named)

    monkeypatch.setattr(ScriptRunner, "run", noting)
    return noted


async def entries_of(bench: PublisherBench) -> list[Any]:
    """Return the log's entries, the marker included: each an id and its fields."""
    return [*await raw(bench.scripts).xrange(bench.scripts.keys.log(JOB_ID))]


async def test_whole_answer_is_one_call(bench: PublisherBench, calls: list[str]) -> None:
    """What is complete before the server may be asked goes out in one; nothing goes before."""
    bench.publisher.obey(AHEAD)
    bench.publisher.obey(step_of_job(300))
    bench.publisher.obey(step_of_job(301, 302, end=FinishReason.LENGTH))
    # Each look takes as many turns of the loop and of the server as a call would.
    for _ in range(20):
        assert await bench.scripts.log.events(JOB_ID) is None
    bench.publisher.obey(OpenGate(0, time.monotonic()))
    committed = await bench.first(Committed)
    assert calls == ["begin"]
    marker, tokens, end = await entries_of(bench)
    assert marker[1] == {
        b"marker": b"w", b"to": b"0", b"start": b"%d" % KEY, b"prompt": b"%d" % AHEAD.prompt_tokens
    }  # fmt: skip
    assert tokens[0] == b"1-3"
    assert Event.of_entry(JOB_ID, *tokens_of(tokens)).ids == (300, 301, 302)
    assert end == (
        b"1-4",
        {b"finish": committed.finish.encode(), b"from": b"4", b"to": b"3"},
    )
    result = JobResult.parse(await bench.scripts.log.result(JOB_ID) or b"")
    assert result.choices[0].ids == (300, 301, 302)
    assert result.finish == Finish.parse(committed.finish)
    assert not any(isinstance(report, Taken) for report in bench.reports)


def tokens_of(entry: tuple[bytes, dict[bytes, bytes]]) -> tuple[bytes, bytes]:
    """Return id and body of an entry of tokens."""
    return entry[0], entry[1][b"e"]


async def test_first_token_makes_the_log_alone_and_at_once(
    bench: PublisherBench, calls: list[str]
) -> None:
    """Marker and first token are one call; what follows is appended, and the end stands behind."""
    bench.publisher.obey(OpenGate(0, time.monotonic()))
    bench.publisher.obey(AHEAD)
    bench.publisher.obey(step_of_job(300, 301))
    await bench.first(Progress)
    assert calls[0] == "begin"
    bench.publisher.obey(step_of_job(302, end=FinishReason.LENGTH))
    await bench.first(Committed)
    assert set(calls[1:]) == {"append", "end"}
    events = await bench.scripts.log.events(JOB_ID) or []
    assert events[0].ids == (300,)
    assert [token_id for event in events for token_id in event.ids] == [300, 301, 302]
    assert len([event for event in events if event.finish is not None]) == 1


@pytest.mark.parametrize("reason", ["cancelled", "failed"])
async def test_job_that_ends_without_a_token_is_one_call(
    bench: PublisherBench, calls: list[str], reason: str
) -> None:
    """A cancel or an error before the first token writes marker and end together."""
    error = Failure("internal", "planted") if reason == "failed" else None
    bench.publisher.obey(OpenGate(0, time.monotonic()))
    bench.publisher.obey(AHEAD)
    bench.publisher.obey(Decide(KEY, reason, error))
    finish = Finish.parse((await bench.first(Committed)).finish)
    assert (finish.reason, finish.error) == (reason, error)
    assert calls == ["begin"]
    assert [entry_id for entry_id, _ in await entries_of(bench)] == [b"1-0", b"1-1"]


async def test_log_of_a_long_prefill_gets_its_marker(
    bench: PublisherBench, monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> None:
    """Where no token comes for a while a takeover says that the job was begun; tokens follow it."""
    monkeypatch.setattr(overdue, "OVERDUE_S", 0.01)
    bench.publisher.obey(OpenGate(0, time.monotonic()))
    bench.publisher.obey(AHEAD)

    async def has_marker() -> bool:
        return bool(await entries_of(bench))

    await until(has_marker)
    [(_, marker)] = await entries_of(bench)
    assert marker == {b"marker": b"w", b"to": b"0", b"prompt": b"%d" % AHEAD.prompt_tokens}
    bench.publisher.obey(step_of_job(300, end=FinishReason.LENGTH))
    await bench.first(Committed)
    assert calls == ["takeover", "append", "end"]


@pytest.mark.parametrize("is_over", [False, True], ids=["first-token", "whole-answer"])
async def test_start_whose_answer_was_lost_knows_its_log(
    bench: PublisherBench, is_over: bool
) -> None:
    """The call was carried out and is made again after the loss: each token is logged once."""
    begin, written = LogScripts.begin_batch, asyncio.Event()

    async def lose(scripts: LogScripts, *args: Any) -> Any:
        await begin(scripts, *args)
        written.set()
        await asyncio.Event().wait()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LogScripts, "begin_batch", lose)
        bench.publisher.obey(OpenGate(0, time.monotonic()))
        bench.publisher.obey(AHEAD)
        bench.publisher.obey(step_of_job(300, end=FinishReason.LENGTH if is_over else None))
        async with asyncio.timeout(PATIENCE_S):
            await written.wait()
    bench.publisher.session.lose("the server is gone")
    if not is_over:
        bench.publisher.obey(step_of_job(301, end=FinishReason.LENGTH))
    bench.publisher.obey(OpenGate(1, time.monotonic()))
    await bench.first(Committed)
    events = await bench.scripts.log.events(JOB_ID) or []
    assert [event.ids for event in events] == [(300,), *([] if is_over else [(301,)]), ()]


async def test_answer_that_comes_after_the_lease_waits_for_the_next_one(
    bench: PublisherBench, calls: list[str]
) -> None:
    """The server refuses it by its own clock; with the next renewal it goes out, once."""
    seconds, _ = await raw(bench.scripts).time()
    lost = asyncio.Event()
    bench.publisher.session.when_lost(lambda _: lost.set())
    bench.publisher.obey(AHEAD)
    bench.publisher.obey(step_of_job(300, end=FinishReason.LENGTH))
    bench.publisher.obey(OpenGate(0, time.monotonic(), (seconds - 10) * 1000))
    async with asyncio.timeout(PATIENCE_S):
        await lost.wait()
    assert await entries_of(bench) == []
    assert not any(isinstance(report, Committed) for report in bench.reports)
    bench.publisher.obey(OpenGate(1, time.monotonic(), (seconds + 3600) * 1000))
    await bench.first(Committed)
    assert set(calls) == {"begin"}
    events = await bench.scripts.log.events(JOB_ID) or []
    assert [event.ids for event in events] == [(300,), ()]


async def test_tokens_of_another_start_of_this_worker_are_not_its_own(
    bench: PublisherBench,
) -> None:
    """The queue lost the pull and gave the job again: the engine may have drawn other tokens."""
    first = Begin(JOB_ID, EPOCH, str(KEY + 1), [stub_tokens(JOB_ID, EPOCH, 1, 1)])
    [reply] = await bench.scripts.log.begin([first], "w")
    assert reply.status is LogStatus.OK
    bench.publisher.obey(OpenGate(0, time.monotonic()))
    bench.publisher.obey(AHEAD)
    bench.publisher.obey(step_of_job(300))
    assert (await bench.first(Preceded)).last == 1


async def test_job_that_goes_back_logs_what_it_has(bench: PublisherBench) -> None:
    """Tokens that were made before the log was there are not lost by a hand-back."""
    bench.publisher.obey(AHEAD)
    bench.publisher.obey(step_of_job(300, 301))
    bench.publisher.obey(HandBack(KEY))
    bench.publisher.obey(OpenGate(0, time.monotonic()))
    assert (await bench.first(AllLogged)).num_logged == 2
    events = await bench.scripts.log.events(JOB_ID) or []
    assert [event.ids for event in events] == [(300,), (301,)]


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
        reading = asyncio.create_task(follow(client, job.job_id))
        async with worker(pool, redis_url):
            story = await reading
        record = await client.scripts.queue.record(job.job_id)
        assert record is not None
        assert record.attempts == 0
        assert story.epochs == {EPOCH, EPOCH + 1}
        assert story.ids[0] == expected_ids(SEED, NUM_TOKENS)
        assert story.text == expected_text(SEED, NUM_TOKENS)
        assert story.reason == "length"
