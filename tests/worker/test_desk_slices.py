"""A large step is taken in slices: nothing of it is overtaken, and neighbours share a call."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

import pytest
from bus_servers import pool, redis_url, server

from tokenbus.engine.null_tokenizer import build_null_tokenizer
from tokenbus.engine.types import EngineStats
from tokenbus.producer.connection import make_redis
from tokenbus.producer.scripts import Scripts
from tokenbus.worker.handoff import StepRecord
from tokenbus.worker.publishing.composer import SLICE_ROWS
from tokenbus.worker.publishing.desk import Desk
from tokenbus.worker.publishing.messages import (
    GiveBack,
    OpenGate,
    Progress,
    Settled,
    Taken,
    TakeOver,
    TextRules,
)
from tokenbus.worker.publishing.pump import NUM_PUMPS
from tokenbus.worker.session import Session

if TYPE_CHECKING:
    from tokenbus.worker.publishing.messages import Answer

__all__ = ["pool", "redis_url", "server"]

NUM_JOBS = 256
TOKEN_ID = 300
RULES = TextRules(1, 1000, 0, (), False, (), (1,))


def step(keys: list[int]) -> StepRecord:
    """Return a step that brings a token for each job."""
    num = len(keys)
    stats = EngineStats(9, 1, 0, num, 0)
    return StepRecord(
        keys, [0] * num, [1] * num, [TOKEN_ID] * num, [], [], [], [], [], stats, time.monotonic()
    )


@pytest.mark.parametrize("first_key", [1, 40])
async def test_order_after_a_large_step_finds_all_of_it_taken(
    redis_url: str, pool: str, first_key: int
) -> None:
    """A job that is given back right after a step of many rows still logs its token of that step.

    And a step of all jobs, in whatever order, takes few calls, full ones where there are enough.
    """
    redis = make_redis(redis_url)
    session = Session(redis, lease_ttl_s=60.0)
    answers: list[Answer] = []
    news = asyncio.Event()

    def emit(answer: Answer) -> None:
        answers.append(answer)
        news.set()

    async def until(kind: type, number: int) -> None:
        while sum(isinstance(answer, kind) for answer in answers) < number:
            news.clear()
            await news.wait()

    def progress(name: str) -> int:
        return sum(getattr(each, name) for each in answers if isinstance(each, Progress))

    desk = Desk(session, redis, Scripts(redis, pool), build_null_tokenizer(), "w", emit)
    keys = list(range(first_key, first_key + NUM_JOBS))
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        group = tasks.create_task(_pump(desk))
        desk.obey(OpenGate(0, time.monotonic()))
        for key in keys:
            desk.obey(TakeOver(key, f"s0-{key}", 1, 1, RULES))
        await until(Taken, NUM_JOBS)
        desk.obey(step(keys))
        while progress("logged_tokens") < NUM_JOBS:
            news.clear()
            await news.wait()
        # The first tokens are logged: from here on nothing goes out alone.
        answers.clear()
        random.Random(first_key).shuffle(keys)
        desk.obey(step(keys))
        while progress("logged_tokens") < NUM_JOBS:
            news.clear()
            await news.wait()
        assert progress("calls") <= NUM_JOBS // SLICE_ROWS + NUM_PUMPS
        answers.clear()
        desk.obey(step(keys))
        desk.obey(GiveBack(keys[-1]))
        await until(Settled, 1)
        group.cancel()
    [settled] = [answer for answer in answers if isinstance(answer, Settled)]
    assert (settled.key, settled.num_logged) == (keys[-1], 3)
    await desk.close()
    await redis.aclose()


async def _pump(desk: Desk) -> None:
    async with asyncio.TaskGroup() as tasks:
        desk.run_in(tasks)
