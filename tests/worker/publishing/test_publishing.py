"""How tokens become entries: how many processes, how much in an entry, who hears what."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock, call

import pytest
from patience import PATIENCE_S
from servers.fixtures import pool, redis_url, server
from workers.null_workers import expected_ids, expected_text, follow, until, worker
from workers.parts import a_member, job_parts, page_budget_of
from workers.publisher_bench import run_log_writers, take_over
from workers.steps import step

from tokenbus.engine.containment import Containment
from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.engine.types import Admission, FinishReason
from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.scripts import Scripts
from tokenbus.producer.scripts.replies import PulledJob
from tokenbus.producer.server.connection import make_redis
from tokenbus.worker.engine.current_engine import CREDIT_LUMP_TOKENS
from tokenbus.worker.held import job_orders
from tokenbus.worker.held.held_jobs import HeldJobs
from tokenbus.worker.messages.engine import Credit, StepRecord
from tokenbus.worker.messages.publishing import (
    ORDERS,
    Committed,
    HandBack,
    Lost,
    OpenGate,
    Taken,
    TakeOver,
)
from tokenbus.worker.process.frames import FrameReader
from tokenbus.worker.publishing.build import num_processes
from tokenbus.worker.publishing.coalescing import MAX_HOLD_S, Coalescing
from tokenbus.worker.publishing.job_log import JobLog
from tokenbus.worker.publishing.publisher import Publisher
from tokenbus.worker.publishing.publisher_pool import PublisherPool
from tokenbus.worker.publishing.reports import ReportReader
from tokenbus.worker.publishing.step_reader import StepReader
from tokenbus.worker.session import Session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from workers.null_workers import Story

    from tokenbus.worker.messages.publishing import Order, PublisherReport

__all__ = ["pool", "redis_url", "server"]


@pytest.fixture
async def client(redis_url: str, pool: str) -> AsyncIterator[AsyncClient]:
    """Give a client of an empty pool."""
    async with await AsyncClient.connect(redis_url, pool=pool) as made:
        yield made


@pytest.mark.parametrize(
    ("setting", "cores", "expected"),
    [
        ("auto", 1, (0, 0)),
        ("auto", 2, (0, 0)),
        ("auto", 4, (1, 1)),
        ("auto", 16, (1, 4)),
        ("auto", 32, (2, 8)),
        (0, 16, (0, 0)),
        (3, 2, (3, 3)),
    ],
)
def test_publishers_by_cores(setting: str | int, cores: int, expected: tuple[int, int]) -> None:
    """Two cores get no process more; others by their number, unless it is set."""
    assert num_processes(setting, cores) == expected


def _call(coalescing: Coalescing, share: float, num_calls: int, start: float = 0.0) -> float:
    """Make calls of 10 ms that take this share of the time; return when the last one ended."""
    now = start
    for _ in range(num_calls):
        coalescing.called(now, now + 0.01 * share)
        now += 0.01
    return now


def test_nothing_is_held_back_while_the_server_keeps_up() -> None:
    """Calls that leave a tenth of the time idle add no delay."""
    coalescing = Coalescing()
    _call(coalescing, 0.85, 200)
    assert coalescing.hold_s == 0


def test_hold_grows_under_pressure_to_a_bound_and_goes_again() -> None:
    """Calls back to back raise the hold step by step, to the bound; calm takes it to zero."""
    coalescing = Coalescing()
    now = _call(coalescing, 1.0, 25)
    first = coalescing.hold_s
    assert 0 < first < MAX_HOLD_S
    now = _call(coalescing, 1.0, 300, now)
    assert coalescing.hold_s == MAX_HOLD_S
    _call(coalescing, 0.3, 300, now)
    assert coalescing.hold_s == 0


@pytest.mark.parametrize("publishers", [0, 2])
async def test_first_token_has_an_entry_of_its_own(
    client: AsyncClient, redis_url: str, pool: str, publishers: int
) -> None:
    """However fast the engine is, the first entry is one token; text and ends stay exact.

    A shorter answer that is over when its log begins goes out whole.
    """
    listener: Any = client.scripts.redis.pubsub()
    await listener.psubscribe(f"{{tb:{pool}:*:tok:*")
    assert await listener.get_message(timeout=PATIENCE_S) is not None
    told: dict[str, list[dict[str, Any]]] = {}
    async with worker(pool, redis_url, publishers=publishers):
        jobs = [await client.submit("go", seed=seed, max_tokens=600) for seed in range(6)]
        stories = await asyncio.gather(*(follow(client, job.job_id) for job in jobs))
    async with asyncio.timeout(PATIENCE_S):
        while sum("finish" in events[-1] for events in told.values()) < len(jobs):
            message = await listener.get_message(timeout=1)
            if message is not None:
                event = json.loads(message["data"])
                told.setdefault(event["job"], []).append(event)
    await listener.aclose()
    for seed, story in enumerate(stories):
        assert story.ids[0] == expected_ids(seed, 600)
        assert story.text == expected_text(seed, 600)
        events = told[story.job_id]
        assert events[0]["to"] == 1
        assert ["finish" in event for event in events].count(True) == 1


async def test_stop_string_and_cancel_cross_the_process_border(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """What a publisher decides reaches the engine, what the worker decides reaches the log."""
    text = expected_text(7, 200)
    stop = text[300:308]
    async with worker(pool, redis_url, publishers=1, null_tokens_per_s=500) as running:
        stopped = await client.submit("go", seed=7, max_tokens=2000, stop=[stop])
        endless = await client.submit("go", seed=8, max_tokens=4000)
        story = await follow(client, stopped.job_id)
        assert story.text == text[: text.index(stop)]
        assert story.reason == "stop"
        await client.cancel(endless.job_id)
        cut: Story = await follow(client, endless.job_id)
        assert cut.reason == "cancelled"
        assert expected_text(8, 4000).startswith(cut.text)
        # Completion trails the terminal event.
        await until(lambda: running.num_held == 0)
        assert running.metrics.jobs_finished == 1
        assert running.metrics.jobs_cancelled == 1


async def test_publisher_without_renewals_stops_by_itself(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """A gate opened on a renewal that is too old lets nothing through; the next one does."""
    redis = make_redis(redis_url)
    session = Session(redis, lease_ttl_s=PATIENCE_S)
    reports: list[PublisherReport] = []
    news = asyncio.Event()

    def emit(report: PublisherReport) -> None:
        reports.append(report)
        news.set()

    publisher = Publisher(
        session=session,
        redis=redis,
        scripts=Scripts(redis, pool),
        tokenizer=build_null_tokenizer(),
        worker="w",
        emit=emit,
    )
    session.when_lost(lambda reason: emit(Lost(publisher.generation, reason)))
    log_writers = asyncio.create_task(run_log_writers(publisher))
    async with asyncio.timeout(PATIENCE_S):
        publisher.obey(OpenGate(0, time.monotonic() - 3.5 * PATIENCE_S))
        publisher.obey(TakeOver(key=1, job_id="s0-j", epoch=1, prompt_tokens=1, rules=None))
        await news.wait()
        assert [type(report) for report in reports] == [Lost]
        assert await client.scripts.log.events("s0-j") is None
        news.clear()
        publisher.obey(OpenGate(1, time.monotonic()))
        await news.wait()
    assert reports[1:] == [Taken(1, 1, 0, [()], [None])]
    log_writers.cancel()
    await asyncio.wait([log_writers])
    await redis.aclose()


async def test_answers_of_a_lost_session_count_for_nothing(redis_url: str) -> None:
    """What a server said before it was lost is not acted upon; after it, it is (R7)."""
    redis = make_redis(redis_url)
    session = Session(redis, lease_ttl_s=5.0)
    held_jobs = HeldJobs()
    job = held_jobs.take(PulledJob("s0-j", 1, 1, 1, "t", 1, False, 0, None, b"{}"))
    events = Mock()
    answers = ReportReader(session, held_jobs, events)
    session.open()
    session.lose("a test")
    session.open()
    answers.receive(Committed(session.generation - 1, job.request_id, "old"))
    assert events.mock_calls == []
    answers.receive(Committed(session.generation, job.request_id, "new"))
    assert events.mock_calls == [
        call.committed(job, Committed(session.generation, job.request_id, "new"))
    ]
    answers.receive(Lost(session.generation - 1, "old news"))
    assert session.is_open
    answers.receive(Lost(session.generation, "news"))
    assert not session.is_open
    await redis.aclose()


class _RecordingLink:
    """A publisher link that notes its orders and claims to be as busy as it is told."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.num_jobs = 0
        self.orders: list[Order] = []

    def send(self, order: Order) -> None:
        self.orders.append(order)

    send_step = send

    def busy_share(self) -> float:
        return self.share

    async def start(self) -> None:
        """Be there at once."""

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def stop(self) -> None:
        """End nothing."""


async def test_busy_publishers_get_company_for_the_jobs_to_come(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full publisher link is joined by another with an open gate; jobs stay where they are."""
    monkeypatch.setattr("tokenbus.worker.publishing.publisher_pool._LOOK_INTERVAL_S", 0.01)
    redis = make_redis(redis_url)
    session = Session(redis, lease_ttl_s=5.0)
    held_jobs = HeldJobs()
    first, second = _RecordingLink(0.9), _RecordingLink(0.1)
    publishers = PublisherPool(session, [first], make_link=lambda: second, max_links=3)
    session.open()
    publishers.open_gate()
    old, new = (
        held_jobs.take(PulledJob(f"s0-{name}", 1, 1, 1, "t", 1, False, 0, None, b"{}"))
        for name in ("old", "new")
    )
    publishers.take_over(old, None)
    running = asyncio.create_task(publishers.run())
    await until(lambda: publishers.num_processes == 2)
    publishers.take_over(new, None)
    job_orders.hand_back(old)
    job_orders.hand_back(new)
    assert [type(order) for order in first.orders] == [OpenGate, TakeOver, HandBack]
    assert [type(order) for order in second.orders] == [OpenGate, TakeOver, HandBack]
    running.cancel()
    await asyncio.wait([running])
    await redis.aclose()


def _step(keys: list[int]) -> StepRecord:
    """Make a step of one token a key, the last of which ends."""
    return step(
        tokens={key: [100 + key] for key in keys},
        ends={keys[-1]: FinishReason.LENGTH},
        admitted=[Admission(keys[0], 8, 4)],
    )


async def test_each_publisher_takes_the_rows_of_its_jobs(redis_url: str) -> None:
    """A step goes to every publisher as it is; rows of others are neither taken nor dropped."""
    redis = make_redis(redis_url)
    links = [_RecordingLink(0.0), _RecordingLink(0.0)]
    publishers = PublisherPool(Session(redis, lease_ttl_s=5.0), links)
    whole = _step([1, 2, 3, 4])
    publishers.take_step(whole)
    for publisher_link, keys in zip(links, ([1, 3], [2, 4]), strict=True):
        [order] = publisher_link.orders
        [body] = FrameReader().feed(ORDERS.encode(order))
        sent = ORDERS.decode(body)
        assert isinstance(sent, StepRecord)
        jobs = {key: JobLog(take_over(key, f"s0-{key}"), enqueue=lambda _: None) for key in keys}
        for job in jobs.values():
            job.restore((), build_null_tokenizer())
        step_reader = StepReader(jobs, lambda _: None, lambda _: None, Containment())
        assert list(step_reader.take(sent)) == []
        ids = {key: job.transcript and job.transcript.ids_of(0) for key, job in jobs.items()}
        assert ids == {key: (100 + key,) for key in keys}
        assert [job.cached_tokens for job in jobs.values()] == [4 if keys[0] == 1 else 0, 0]
        ended = [key for key, job in jobs.items() if job.reasons == ["length"]]
        assert ended == [key for key in keys if key == 4]
        assert step_reader.num_dropped == 0
    await redis.aclose()


def test_tokens_of_jobs_that_have_left_are_credited_at_once() -> None:
    """No publisher counts them, so the worker gives the engine their room back."""
    member = a_member()
    parts = job_parts(member, page_budget_of(member.held_jobs, 8), Mock())
    engine_reports = parts.engine_reports(Mock())
    engine_reports.take(_step(list(range(1, CREDIT_LUMP_TOKENS + 1))))
    assert parts.sent == [Credit(CREDIT_LUMP_TOKENS)]
