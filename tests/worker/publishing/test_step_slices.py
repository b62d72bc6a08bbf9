"""A large step is taken in slices: nothing of it is overtaken, and neighbours share a call."""

from __future__ import annotations

import random
import time

import pytest
from servers.fixtures import pool, redis_url, server
from workers.publisher_bench import running_publisher, take_over
from workers.steps import step

from tokenbus.worker.messages.publishing import (
    AllLogged,
    HandBack,
    OpenGate,
    Progress,
    Taken,
)
from tokenbus.worker.publishing.log_writer import NUM_LOG_WRITERS
from tokenbus.worker.publishing.step_reader import FIRST_ROWS, SLICE_ROWS

__all__ = ["pool", "redis_url", "server"]

NUM_JOBS = 256
TOKEN_ID = 300


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
        publisher, reports = bench.publisher, bench.reports

        def progress() -> list[Progress]:
            return [each for each in reports if isinstance(each, Progress)]

        async def until_all_logged() -> None:
            while sum(each.logged_tokens for each in progress()) < NUM_JOBS:
                await bench.more()

        publisher.obey(OpenGate(0, time.monotonic()))
        for key in keys:
            publisher.obey(take_over(key, f"s0-{key}"))
        for _ in keys:
            await bench.first(Taken)
        publisher.obey(step(tokens=dict.fromkeys(keys, (TOKEN_ID,))))
        await until_all_logged()
        # The first tokens are logged: from here on nothing goes out alone.
        reports.clear()
        publisher.obey(step(tokens=dict.fromkeys(keys, (TOKEN_ID,))))
        await until_all_logged()
        assert sum(len(each.calls) for each in progress()) <= -(-NUM_JOBS // SLICE_ROWS) + 1
        reports.clear()
        random.Random(first_key).shuffle(keys)
        publisher.obey(step(tokens=dict.fromkeys(keys, (TOKEN_ID,))))
        await until_all_logged()
        assert (
            sum(len(each.calls) for each in progress())
            <= NUM_JOBS // (SLICE_ROWS - FIRST_ROWS) + NUM_LOG_WRITERS
        )
        publisher.obey(step(tokens=dict.fromkeys(keys, (TOKEN_ID,))))
        publisher.obey(HandBack(keys[-1]))
        last = await bench.first(AllLogged)
    assert (last.key, last.num_logged) == (keys[-1], 4)
