"""A large step is taken in slices: nothing of it is overtaken, and neighbours share a call."""

from __future__ import annotations

import random
import time

import pytest
from servers.fixtures import pool, redis_url, server
from workers.publisher_bench import RULES, running_publisher

from tokenbus.engine.types import EngineStats
from tokenbus.worker.engine.messages import StepRecord
from tokenbus.worker.publishing.log_writer import NUM_LOG_WRITERS
from tokenbus.worker.publishing.messages import (
    GiveBack,
    OpenGate,
    Progress,
    Settled,
    Taken,
    TakeOver,
)
from tokenbus.worker.publishing.step_reader import FIRST_ROWS, SLICE_ROWS

__all__ = ["pool", "redis_url", "server"]

NUM_JOBS = 256
TOKEN_ID = 300


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

    And a step of all jobs takes a call per slice and one for the rows that go ahead, in another
    order than theirs a few more.
    """
    keys = list(range(first_key, first_key + NUM_JOBS))
    async with running_publisher(redis_url, pool) as bench:
        publisher, answers = bench.publisher, bench.answers

        def progress(name: str) -> int:
            return sum(getattr(each, name) for each in answers if isinstance(each, Progress))

        async def all_logged() -> None:
            while progress("logged_tokens") < NUM_JOBS:
                await bench.more()

        publisher.obey(OpenGate(0, time.monotonic()))
        for key in keys:
            publisher.obey(TakeOver(key, f"s0-{key}", 1, 1, RULES))
        for _ in keys:
            await bench.first(Taken)
        publisher.obey(step(keys))
        await all_logged()
        # The first tokens are logged: from here on nothing goes out alone.
        answers.clear()
        publisher.obey(step(keys))
        await all_logged()
        assert progress("calls") <= -(-NUM_JOBS // SLICE_ROWS) + 1
        answers.clear()
        random.Random(first_key).shuffle(keys)
        publisher.obey(step(keys))
        await all_logged()
        assert progress("calls") <= NUM_JOBS // (SLICE_ROWS - FIRST_ROWS) + NUM_LOG_WRITERS
        publisher.obey(step(keys))
        publisher.obey(GiveBack(keys[-1]))
        settled = await bench.first(Settled)
    assert (settled.key, settled.num_logged) == (keys[-1], 4)
