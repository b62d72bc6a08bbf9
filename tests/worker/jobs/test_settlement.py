"""What a worker may pull while jobs that it does not know are counted as held by it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest
from patience import PATIENCE_S
from workers.parts import a_member, an_engine

from tokenbus.producer.scripts.replies import RequeueStatus
from tokenbus.producer.server.url import ServerUrl
from tokenbus.worker.errors import SessionLost
from tokenbus.worker.jobs.settlement import Settlement
from tokenbus.worker.pool.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class HeldUpSession:
    """A session whose calls are answered when the test says so."""

    def __init__(self) -> None:
        self.called = asyncio.Event()
        self.answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def call(self, _: Callable[[], Awaitable[object]]) -> object:
        """Note the call and wait for the test."""
        self.called.set()
        return await self.answer


@pytest.mark.parametrize("is_answered", [True, False], ids=["answered", "lost"])
async def test_nothing_is_pulled_before_an_unknown_job_was_handed_back(is_answered: bool) -> None:
    """What a lost pull brought counts as held until the queue says otherwise, or all starts anew.

    A pull before that would bring jobs for pages that were promised to the first ones.
    """
    session = HeldUpSession()
    member, (engine, _) = a_member(session=session), an_engine()
    settlement = Settlement(member, engine)
    lease = Lease(
        member,
        settlement=settlement,
        publishers=Mock(),
        engine=engine,
        total_pages=8,
        page_size=16,
        url=ServerUrl.parse("redis://localhost"),
    )
    order: list[str] = []

    async def pull() -> None:
        async with lease.pulling():
            order.append("pulled")

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        settlement.run_in(tasks)
        settlement.hand_back_unknown("j-0", 1)
        tasks.create_task(pull())
        await session.called.wait()
        await asyncio.sleep(0)
        order.append("answered")
        if is_answered:
            session.answer.set_result(RequeueStatus.WAITING)
        else:
            session.answer.set_exception(SessionLost("the server went away"))
    assert order == ["answered", "pulled"]
