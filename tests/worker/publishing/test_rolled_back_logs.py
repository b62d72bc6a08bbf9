"""A server that lost its last second: what a worker knew of a log is void, what it did is not."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from servers.fixtures import pool, redis_url, server
from workers.null_workers import command
from workers.parts import a_member, an_engine
from workers.publisher_bench import (
    EPOCH,
    JOB_ID,
    KEY,
    PublisherBench,
    running_publisher,
    step_of_job,
    take_over,
)

from tokenbus.engine.types import FinishReason
from tokenbus.producer.contract.events import Finish
from tokenbus.producer.scripts import End, Scripts
from tokenbus.producer.scripts.log import Takeover
from tokenbus.producer.scripts.replies import PulledJob
from tokenbus.worker.errors import SessionLost
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.jobs.settlement import Settlement
from tokenbus.worker.messages.publishing import (
    AllLogged,
    Broken,
    Committed,
    Fenced,
    HandBack,
    OpenGate,
    Progress,
    Taken,
    TakeOver,
)
from tokenbus.worker.publishing.publisher_pool import PublisherPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.worker.messages.publishing import Order
    from tokenbus.worker.publishing.publisher import Publisher

__all__ = ["pool", "redis_url", "server"]


@dataclass
class LostSecond:
    """A publisher with one job, and what its server remembers of that."""

    bench: PublisherBench
    dump: bytes = b""

    @property
    def publisher(self) -> Publisher:
        """The publisher."""
        return self.bench.publisher

    @property
    def scripts(self) -> Scripts:
        """The scripts of its pool."""
        return self.bench.scripts

    async def first(self, *kinds: type[Any]) -> Any:
        """Wait for a report of these kinds."""
        return await self.bench.first(*kinds)

    async def log(self, *ids: int) -> None:
        """Let the engine bring tokens and wait until they are logged."""
        self.publisher.obey(step_of_job(*ids))
        while not (await self.first(Progress)).logged_tokens:
            pass

    async def remember(self) -> None:
        """Keep the log as it is now."""
        self.dump = await command(self.scripts, "DUMP", self.scripts.keys.log(JOB_ID))

    async def roll_back(self) -> None:
        """Let the server lose what came since, and with it the session."""
        keys = self.scripts.keys
        await command(self.scripts, "RESTORE", keys.log(JOB_ID), 0, self.dump, "REPLACE")
        await command(self.scripts, "DEL", keys.result(JOB_ID))
        self.reopen()

    def reopen(self) -> None:
        """Lose the session and open it anew."""
        self.publisher.session.lose("the server is gone")
        self.bench.reports.clear()
        self.publisher.obey(OpenGate(self.publisher.generation + 1, time.monotonic()))

    async def finishes(self) -> list[Finish]:
        """Return the terminal entries of the log."""
        events = await self.scripts.log.events(JOB_ID) or []
        return [event.finish for event in events if event.finish is not None]


@pytest.fixture
async def bench(redis_url: str, pool: str) -> AsyncIterator[LostSecond]:
    """Give a publisher with one job whose takeover and first two tokens are logged."""
    async with running_publisher(redis_url, pool) as running:
        made = LostSecond(running)
        made.publisher.obey(OpenGate(0, time.monotonic()))
        made.publisher.obey(take_over())
        await made.first(Taken)
        await made.log(300)
        await made.log(301)
        yield made


async def test_fenced_job_is_not_ended_when_its_log_is_ours_again(bench: LostSecond) -> None:
    """Fenced, handed back, taken out of the engine; then the server forgets who fenced it.

    The next owner goes on where the log ends: an end here would cut the answer short.
    """
    await bench.remember()
    [reply] = await bench.scripts.log.takeover([Takeover(JOB_ID, EPOCH + 1, "other")])
    assert reply.last == 2
    bench.publisher.obey(step_of_job(302))
    await bench.first(Fenced)
    bench.publisher.obey(HandBack(KEY))
    bench.publisher.obey(step_of_job(end=FinishReason.ABORTED))
    await bench.roll_back()
    report = await bench.first(AllLogged, Committed)
    assert isinstance(report, AllLogged)
    assert await bench.finishes() == []


async def test_abort_alone_is_no_end(bench: LostSecond) -> None:
    """The engine was told to drop the job; the worker that told it says what becomes of it."""
    bench.publisher.obey(step_of_job(302, end=FinishReason.ABORTED))
    bench.publisher.obey(HandBack(KEY))
    report = await bench.first(AllLogged, Committed)
    assert isinstance(report, AllLogged)
    assert report.num_logged == 3
    assert await bench.finishes() == []


async def test_foreign_end_that_the_server_forgot_is_written_again(bench: LostSecond) -> None:
    """Another ended the job, this worker has told so, and then the end is lost: it stands again."""
    await bench.remember()
    finish = Finish("cancelled", choices=("cancelled",)).dump()
    await bench.scripts.log.takeover([Takeover(JOB_ID, EPOCH + 1, "other")])
    await bench.scripts.log.end([End(JOB_ID, EPOCH + 1, 2, finish, "{}")])
    bench.reopen()
    assert (await bench.first(Committed)).finish == finish
    await bench.roll_back()
    again = await bench.first(Committed, Broken)
    assert isinstance(again, Committed)
    assert await bench.finishes() == [Finish.parse(finish)] == [Finish.parse(again.finish)]


class _RecordingLink:
    """A publisher link that notes its orders."""

    def __init__(self) -> None:
        self.num_jobs = 0
        self.orders: list[Order] = []

    def send(self, order: Order) -> None:
        """Note an order."""
        self.orders.append(order)


async def _lost(_: object) -> object:
    """Be a call that the end of the session breaks off."""
    raise SessionLost("gone")


@pytest.mark.parametrize("why", ["fenced", "broken"])
async def test_publisher_hears_of_jobs_that_go_back_unlogged(why: str) -> None:
    """It is told to let the job go, and the hand-back does not wait for its report."""
    publisher_link: Any = _RecordingLink()
    session: Any = Mock(generation=0, call=_lost)
    member, (engine, _) = a_member(session=session), an_engine()
    settlement = Settlement(member, engine)
    job = member.held_jobs.take(PulledJob(JOB_ID, EPOCH, 1, 1, "t", 1, False, 0, None, b"{}"))
    PublisherPool(session, [publisher_link]).take_over(job, None)
    async with asyncio.TaskGroup() as tasks:
        settlement.run_in(tasks)
        if why == "fenced":
            settlement.fenced(job, EPOCH + 1)
        else:
            settlement.broken(job, "a test")
        assert job.phase is Phase.HANDING_BACK
        assert job.is_leaving
    assert [type(order) for order in publisher_link.orders] == [TakeOver, HandBack]
