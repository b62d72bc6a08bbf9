"""A bell runs the task that waits for it where it is rung."""

from __future__ import annotations

import asyncio

import pytest
from patience import PATIENCE_S

from tokenbus.producer.client.reading.wakeup import Wakeup


async def _wait(wakeup: Wakeup, seen: list[str]) -> None:
    while True:
        await wakeup
        seen.append("rung")


async def _rung_by_callback(
    wakeup: Wakeup, seen: list[str], num_rings: int
) -> asyncio.Future[None]:
    """Ring from a callback of the loop, as a socket's protocol does."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def read() -> None:
        for number in range(num_rings):
            seen.append(f"parsed {number}")
            wakeup.ring()
        done.set_result(None)

    loop.call_soon(read)
    await done
    return done


async def test_consumer_runs_before_the_next_message_is_parsed() -> None:
    """Each ring lets the waiting task run up to its next wait."""
    wakeup, seen = Wakeup(asyncio.get_running_loop()), list[str]()
    async with asyncio.timeout(PATIENCE_S):
        waiting = asyncio.ensure_future(_wait(wakeup, seen))
        await asyncio.sleep(0)
        await _rung_by_callback(wakeup, seen, 3)
    assert seen == ["parsed 0", "rung", "parsed 1", "rung", "parsed 2", "rung"]
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_ring_from_a_task_reaches_the_waiting_task_soon() -> None:
    """Where another task is running the waiting one has its turn after it, and is not lost."""
    wakeup, seen = Wakeup(asyncio.get_running_loop()), list[str]()
    waiting = asyncio.ensure_future(_wait(wakeup, seen))
    await asyncio.sleep(0)
    wakeup.ring()
    assert seen == []
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.sleep(0)
        assert seen == ["rung"]
        await _rung_by_callback(wakeup, seen, 1)
    assert seen == ["rung", "parsed 0", "rung"]
    waiting.cancel()


async def test_cancelled_wait_ends_once_whether_rung_or_not() -> None:
    """A cancel ends the wait, also one that was rung before; the bell serves the next wait."""
    wakeup, seen = Wakeup(asyncio.get_running_loop()), list[str]()
    async with asyncio.timeout(PATIENCE_S):
        for is_rung in (False, True):
            waiting = asyncio.ensure_future(_wait(wakeup, seen))
            await asyncio.sleep(0)
            if is_rung:
                wakeup.ring_soon()
            waiting.cancel("enough")
            await _rung_by_callback(wakeup, [], 1)
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert not wakeup.is_awaited
        assert seen == []
        waiting = asyncio.ensure_future(_wait(wakeup, seen))
        await asyncio.sleep(0)
        await _rung_by_callback(wakeup, [], 1)
    assert seen == ["rung"]
    waiting.cancel()


async def test_wait_with_a_time_limit_leaves_the_bell_usable() -> None:
    """A limit that strikes takes the waiting task off the bell."""
    wakeup = Wakeup(asyncio.get_running_loop())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await wakeup
    assert not wakeup.is_awaited
