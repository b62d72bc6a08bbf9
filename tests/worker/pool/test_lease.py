"""Renewals of the lease beside pulls: neither waits for the other, and nothing pulled is lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

from patience import PATIENCE_S
from workers.parts import a_member, an_engine

from tokenbus.producer.scripts.lease import Renewal
from tokenbus.producer.scripts.replies import HeldEntry, PulledJob
from tokenbus.producer.server.url import ServerUrl
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.pool.lease import Lease
from tokenbus.worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tokenbus.worker.held.pool_member import PoolMember


class OpenSession:
    """Is open; the test makes each call with `answered`, and may do something before its answer."""

    def __init__(self) -> None:
        self.called: asyncio.Queue[asyncio.Event] = asyncio.Queue()
        self.renewed = Mock()

    async def lost(self) -> None:
        """Never be lost."""
        await asyncio.Event().wait()

    async def call(self, act: Callable[[], Awaitable[Any]], **_: object) -> Any:
        """Ask the server, and keep its answer until the test says so."""
        reply, goes_on = await act(), asyncio.Event()
        await self.called.put(goes_on)
        await goes_on.wait()
        return reply


class StubLeases:
    """The server: tells what it counts as held here."""

    def __init__(self) -> None:
        self.held: list[HeldEntry] = []

    async def renew(self, *_: object) -> Renewal:
        """Say what is held."""
        return Renewal(list(self.held), 1_700_000_000_000)


def a_lease() -> tuple[Lease, PoolMember, StubLeases, OpenSession, Mock]:
    """Make a lease that is renewed at once, with a server and a settlement to look at."""
    session, leases, settlement = OpenSession(), StubLeases(), Mock(hands_back_unknown=False)

    async def no_unknown() -> None:
        """Hand nothing back."""

    settlement.unknown_handed_back = no_unknown
    settings = WorkerSettings.load(renew_interval_s=0.05, lease_ttl_s=1)
    member = a_member(session=session, scripts=Mock(lease=leases), settings=settings)
    lease = Lease(
        member,
        settlement=settlement,
        publishers=Mock(),
        engine=an_engine()[0],
        total_pages=8,
        page_size=16,
        url=ServerUrl.parse("redis://localhost"),
    )
    return lease, member, leases, session, settlement


def pulled(job_id: str) -> PulledJob:
    """Make a job as a pull brings it."""
    return PulledJob(job_id, 1, 0, 1, "t", 1, False, 0, None, b"")


async def test_pull_that_waits_for_the_bell_holds_no_renewal_up() -> None:
    """What it may have brought is compared with what is known once it is answered, no sooner."""
    lease, member, leases, session, settlement = a_lease()
    running = asyncio.create_task(lease.run())
    async with asyncio.timeout(PATIENCE_S):
        async with lease.pulling():
            (await session.called.get()).set()
            leases.held = [HeldEntry("j", 1, "")]
            (await session.called.get()).set()
            # Nothing of it waits for time: what would come has come after some turns of the loop.
            for _ in range(20):
                await asyncio.sleep(0)
            assert session.called.empty()
            assert session.renewed.call_count == 2
            member.held_jobs.take(pulled("j"))
        (await session.called.get()).set()
        await session.called.get()
        assert settlement.hand_back_unknown.call_count == 0
        running.cancel()


async def test_job_that_is_pulled_while_a_renewal_is_under_way_stays() -> None:
    """The server had not heard of that pull when it said what is held."""
    lease, member, leases, session, settlement = a_lease()
    earlier = member.held_jobs.take(pulled("earlier"))
    running = asyncio.create_task(lease.run())
    async with asyncio.timeout(PATIENCE_S):
        answer = await session.called.get()
        async with lease.pulling():
            job = member.held_jobs.take(pulled("j"))
            leases.held = [HeldEntry("j", 1, "")]
        answer.set()
        await session.called.get()
        running.cancel()
    assert settlement.drop.call_args_list == [((earlier,),)]
    assert job.phase is Phase.PULLED


async def test_what_nobody_here_knows_is_handed_back() -> None:
    """No pull is under way that may have brought it."""
    lease, _, leases, session, settlement = a_lease()
    leases.held = [HeldEntry("lost", 3, "")]
    running = asyncio.create_task(lease.run())
    async with asyncio.timeout(PATIENCE_S):
        (await session.called.get()).set()
        await session.called.get()
        running.cancel()
    settlement.hand_back_unknown.assert_called_with("lost", 3)
