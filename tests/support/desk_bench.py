"""A publisher's desk on a real server, with everything it answers."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenbus.engine.null_tokenizer import build_null_tokenizer
from tokenbus.engine.types import EngineStats
from tokenbus.producer.connection import make_redis
from tokenbus.producer.scripts import Scripts
from tokenbus.worker.handoff import StepRecord
from tokenbus.worker.publishing.desk import Desk
from tokenbus.worker.publishing.messages import TextRules
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
class DeskBench:
    """A desk whose pumps run; `answers` are those that no test has taken yet."""

    desk: Desk
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
async def running_desk(redis_url: str, pool: str) -> AsyncIterator[DeskBench]:
    """Run a desk until the end of the block; its gate is still closed."""
    redis = make_redis(redis_url)
    scripts, session = Scripts(redis, pool), Session(redis, lease_ttl_s=60.0)
    made: list[DeskBench] = []
    desk = Desk(session, redis, scripts, build_null_tokenizer(), "w", lambda a: made[0].hear(a))
    made.append(DeskBench(desk, scripts))
    pumps = asyncio.create_task(pump(desk))
    try:
        yield made[0]
    finally:
        pumps.cancel()
        await asyncio.wait([pumps])
        await desk.close()
        await redis.aclose()


async def pump(desk: Desk) -> None:
    """Run a desk's pumps for ever."""
    async with asyncio.TaskGroup() as tasks:
        desk.run_in(tasks)
