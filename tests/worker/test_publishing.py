"""How tokens become entries: how many processes, how much in an entry, who hears what."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from bus_servers import pool, redis_url, server
from bus_workers import expected_ids, expected_text, follow, until, worker

from tokenbus.producer.client import AsyncClient
from tokenbus.worker.publishing.build import num_processes
from tokenbus.worker.publishing.pace import MAX_HOLD_S, Pace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bus_workers import Story

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
        ("auto", 16, (2, 4)),
        (0, 16, (0, 0)),
        (3, 2, (3, 3)),
    ],
)
def test_publishers_by_cores(setting: str | int, cores: int, expected: tuple[int, int]) -> None:
    """Two cores get no process more; others by their number, unless it is set."""
    assert num_processes(setting, cores) == expected


def _call(pace: Pace, share: float, num_calls: int, start: float = 0.0) -> float:
    """Make calls of 10 ms that take this share of the time; return when the last one ended."""
    now = start
    for _ in range(num_calls):
        pace.called(now, now + 0.01 * share)
        now += 0.01
    return now


def test_nothing_is_held_back_while_the_server_keeps_up() -> None:
    """Calls that leave a tenth of the time idle add no delay."""
    pace = Pace()
    _call(pace, 0.85, 200)
    assert pace.hold_s == 0


def test_hold_grows_under_pressure_to_a_bound_and_goes_again() -> None:
    """Calls back to back raise the hold step by step, to the bound; calm takes it to zero."""
    pace = Pace()
    now = _call(pace, 1.0, 25)
    first = pace.hold_s
    assert 0 < first < MAX_HOLD_S
    now = _call(pace, 1.0, 300, now)
    assert pace.hold_s == MAX_HOLD_S
    _call(pace, 0.3, 300, now)
    assert pace.hold_s == 0


@pytest.mark.parametrize("publishers", [0, 2])
async def test_first_token_has_an_entry_of_its_own(
    client: AsyncClient, redis_url: str, pool: str, publishers: int
) -> None:
    """However fast the engine is, the first entry is one token; text and ends stay exact."""
    async with worker(pool, redis_url, publishers=publishers):
        jobs = [await client.submit("go", seed=seed, max_tokens=300) for seed in range(6)]
        stories = await asyncio.gather(*(follow(client, job.job_id) for job in jobs))
    for seed, story in enumerate(stories):
        assert story.ids[0] == expected_ids(seed, 300)
        assert story.text == expected_text(seed, 300)
        events = await client.scripts.log.events(story.job_id) or []
        assert events[0].to == 1
        assert [event.finish is not None for event in events].count(True) == 1


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
