"""How a worker is asked to stop, while it starts and while it drains."""

from __future__ import annotations

import asyncio

from patience import PATIENCE_S

from tokenbus.worker.stop_request import StopRequest


async def _never(ended: asyncio.Event) -> None:
    """Wait for ever and tell when that was cancelled."""
    try:
        await asyncio.Event().wait()
    finally:
        ended.set()


async def _start(ended: asyncio.Event) -> str:
    """Be a start that does not come to its end."""
    await _never(ended)
    return "started"


async def test_request_cancels_the_work_of_the_start() -> None:
    """What would take for ever is given up, and has ended when that is known."""
    stop, ended = StopRequest(), asyncio.Event()
    starting = asyncio.create_task(stop.unless_made(_start(ended)))
    await asyncio.sleep(0)
    stop.make()
    async with asyncio.timeout(PATIENCE_S):
        assert await starting is None
    assert ended.is_set()


async def test_second_request_ends_the_wait_for_running_jobs() -> None:
    """The first only asks to drain; the second, or one that says now, ends it."""
    stop, ended = StopRequest(), asyncio.Event()
    stop.make()
    assert not stop.is_now
    draining = asyncio.create_task(stop.until_now(_never(ended), timeout_s=3600))
    await asyncio.sleep(0)
    stop.make()
    async with asyncio.timeout(PATIENCE_S):
        await draining
        await ended.wait()
    assert stop.is_now
