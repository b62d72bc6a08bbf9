"""A publisher on a real server, with everything it reports."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from patience import PATIENCE_S
from workers.steps import step

from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.producer.scripts import Scripts
from tokenbus.producer.server.connection import make_redis
from tokenbus.worker.messages.publishing import TakeOver, TextRules
from tokenbus.worker.publishing.publisher import Publisher
from tokenbus.worker.session import Session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.engine.types import FinishReason
    from tokenbus.worker.messages.engine import StepRecord
    from tokenbus.worker.messages.publishing import PublisherReport

# The one job of most benches.
KEY, JOB_ID, EPOCH = 1, "s0-j", 1
RULES = TextRules(num_choices=1, max_tokens=1000, prompt_tail=(1,))


def take_over(key: int = KEY, job_id: str = JOB_ID, *, is_ahead: bool = False) -> TakeOver:
    """Return the order to take a job's log over."""
    return TakeOver(
        key=key, job_id=job_id, epoch=EPOCH, prompt_tokens=1, rules=RULES, is_ahead=is_ahead
    )


def step_of_job(*ids: int, end: FinishReason | None = None) -> StepRecord:
    """Return a step that brings these tokens for the job, and perhaps its end."""
    return step(tokens={KEY: ids}, ends={} if end is None else {KEY: end})


@dataclass
class PublisherBench:
    """A publisher whose log writers run; `reports` are those that no test has taken yet."""

    publisher: Publisher
    scripts: Scripts
    reports: list[PublisherReport] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, report: PublisherReport) -> None:
        """Note a report."""
        self.reports.append(report)
        self._news.set()

    async def more(self) -> None:
        """Wait for another report."""
        self._news.clear()
        async with asyncio.timeout(PATIENCE_S):
            await self._news.wait()

    async def first(self, *kinds: type[Any]) -> Any:
        """Wait for a report of these kinds and take everything up to it."""
        while True:
            for number, report in enumerate(self.reports):
                if isinstance(report, kinds):
                    del self.reports[: number + 1]
                    return report
            await self.more()


@asynccontextmanager
async def running_publisher(redis_url: str, pool: str) -> AsyncIterator[PublisherBench]:
    """Run a publisher until the end of the block; its gate is still closed."""
    redis = make_redis(redis_url)
    scripts, session = Scripts(redis, pool), Session(redis, lease_ttl_s=60.0)
    made: list[PublisherBench] = []
    publisher = Publisher(
        session=session,
        redis=redis,
        scripts=scripts,
        tokenizer=build_null_tokenizer(),
        worker="w",
        emit=lambda report: made[0].hear(report),
    )
    made.append(PublisherBench(publisher, scripts))
    log_writers = asyncio.create_task(run_log_writers(publisher))
    # Only what runs takes a large step in slices.
    await asyncio.sleep(0)
    try:
        yield made[0]
    finally:
        log_writers.cancel()
        await asyncio.wait([log_writers])
        await publisher.close()
        await redis.aclose()


async def run_log_writers(publisher: Publisher) -> None:
    """Run a publisher's log writers for ever."""
    async with asyncio.TaskGroup() as tasks:
        publisher.run_in(tasks)
