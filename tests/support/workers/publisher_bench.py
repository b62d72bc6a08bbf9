"""A publisher's publisher on a real server, with everything it answers."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.engine.types import EngineStats
from tokenbus.producer.scripts import Scripts
from tokenbus.producer.server.connection import make_redis
from tokenbus.worker.engine.messages import StepRecord
from tokenbus.worker.publishing.messages import TextRules
from tokenbus.worker.publishing.publisher import Publisher
from tokenbus.worker.session import Session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.engine.types import FinishReason
    from tokenbus.worker.publishing.messages import Answer

PATIENCE_S = 20.0
# The one job of most benches.
KEY, JOB_ID, EPOCH = 1, "s0-j", 1
RULES = TextRules(1, 1000, 0, (), False, (), (1,))


def step(*ids: int, end: FinishReason | None = None) -> StepRecord:
    """Return a step that brings these tokens for the job, and perhaps its end."""
    ends: list[Any] = [] if end is None else [(0, end, None, None)]
    stats = EngineStats(9, 1, 0, 1, 0)
    now = time.monotonic()
    return StepRecord([KEY], [0], [len(ids)], list(ids), ends, [], [], [], [], stats, now)


@dataclass
class PublisherBench:
    """A publisher whose log writers run; `answers` are those that no test has taken yet."""

    publisher: Publisher
    scripts: Scripts
    answers: list[Answer] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, answer: Answer) -> None:
        """Note an answer."""
        self.answers.append(answer)
        self._news.set()

    async def more(self) -> None:
        """Wait for another answer."""
        self._news.clear()
        async with asyncio.timeout(PATIENCE_S):
            await self._news.wait()

    async def first(self, *kinds: type[Any]) -> Any:
        """Wait for an answer of these kinds and take everything up to it."""
        while True:
            for number, answer in enumerate(self.answers):
                if isinstance(answer, kinds):
                    del self.answers[: number + 1]
                    return answer
            await self.more()


@asynccontextmanager
async def running_publisher(redis_url: str, pool: str) -> AsyncIterator[PublisherBench]:
    """Run a publisher until the end of the block; its gate is still closed."""
    redis = make_redis(redis_url)
    scripts, session = Scripts(redis, pool), Session(redis, lease_ttl_s=60.0)
    made: list[PublisherBench] = []
    publisher = Publisher(
        session, redis, scripts, build_null_tokenizer(), "w", lambda a: made[0].hear(a)
    )
    made.append(PublisherBench(publisher, scripts))
    log_writers = asyncio.create_task(log_writer(publisher))
    try:
        yield made[0]
    finally:
        log_writers.cancel()
        await asyncio.wait([log_writers])
        await publisher.close()
        await redis.aclose()


async def log_writer(publisher: Publisher) -> None:
    """Run a publisher's log writers for ever."""
    async with asyncio.TaskGroup() as tasks:
        publisher.run_in(tasks)
