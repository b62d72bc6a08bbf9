"""The pull loop takes jobs by free pages, and one more that waits at the head of the line.

After a pull that found nothing the worker waits on the doorbell, and sends the next pull along with
the wait where most of it is idle; after one that found only what does not fit, for pages; after one
that left all to workers that hold its prefix, until that is nobody's any more. A worker that is all
but full lets room gather for some milliseconds first: its short jobs end one by one, and a pull for
each would cost more than the job.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tokenbus.producer.contract.keys import NUM_PRIORITIES
from tokenbus.producer.scripts import Budget
from tokenbus.producer.scripts.replies import PullStatus
from tokenbus.worker.errors import SessionLost
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from tokenbus.producer.scripts.replies import Pulled
    from tokenbus.worker.engine.current_engine import CurrentEngine
    from tokenbus.worker.held.pool_member import PoolMember
    from tokenbus.worker.jobs.head_of_line import HeadOfLine
    from tokenbus.worker.jobs.held_prefixes import HeldPrefixes
    from tokenbus.worker.jobs.page_budget import PageBudget, Room
    from tokenbus.worker.jobs.suspects import Suspects
    from tokenbus.worker.pool.arrivals import Arrivals
    from tokenbus.worker.pool.doorbell import Doorbell
    from tokenbus.worker.pool.lease import Lease
    from tokenbus.worker.pool.parking import Parking
    from tokenbus.worker.pool.refusals import Refusals

# Nothing is waited for longer: the wake-up may be lost with its server.
MAX_WAIT_S = 1.0
# How often a full worker looks for a job that goes before what it runs; an empty look costs the
# server 14 us.
URGENT_LOOK_S = 0.25
LAST_CLASS = NUM_PRIORITIES - 1
# Room gathers for as many naps at most, in which 2,000 short jobs a second free room for twelve.
NUM_NAPS, NAP_S = 3, 0.002
# Less than these shares of all rows and pages is little room: what is busy beside it is far more
# than the naps cost.
ROW_SHARE, PAGE_SHARE = 1 / 16, 1 / 64
# With more than this share of all rows and pages free a pull may wait for the bell on the server.
# It is offered half of what is free: what is here may turn out larger meanwhile.
IDLE_SHARE = 1 / 2
# Answers of a pull that has looked at everything it was given.
NORMAL = (PullStatus.JOBS, PullStatus.EMPTY, PullStatus.FULL, PullStatus.SPARED)


class PullLoop:
    """The pull loop of one worker."""

    def __init__(
        self,
        member: PoolMember,
        *,
        engine: CurrentEngine,
        doorbell: Doorbell,
        lease: Lease,
        arrivals: Arrivals,
        refusals: Refusals,
        parking: Parking,
        head_of_line: HeadOfLine,
        page_budget: PageBudget,
        prefixes: HeldPrefixes,
        suspects: Suspects,
    ) -> None:
        self._session = member.session
        self._scripts = member.scripts
        self._worker = member.worker
        self._settings = member.settings
        self._metrics = member.metrics
        self._engine = engine
        self._doorbell = doorbell
        self._lease = lease
        self._arrivals = arrivals
        self._refusals = refusals
        self._parking = parking
        self._head_of_line = head_of_line
        self._page_budget = page_budget
        self._prefixes = prefixes
        self._suspects = suspects
        self._is_paused = False
        # For how long the next pull waits for the bell.
        self._wait_s = 0.0
        self._log = get_logger()

    async def run(self) -> None:
        """Pull for ever; cancelled when the worker goes quiet."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self._session.opened()
                    await self._gather_room()
                    self._head_of_line.look_anew()
                    await self._pull_and_wait(tasks)
        finally:
            await self._doorbell.close()

    async def _pull_and_wait(self, tasks: asyncio.TaskGroup) -> None:
        """Pull, and wait until another pull may find something."""
        is_behind_wait = self._wait_s > 0
        try:
            answer = await self.pull(tasks)
        except SessionLost:
            return
        except RedisError as error:
            self._log.exception("queue.pull_refused")
            self._session.lose(f"the pull was refused: {error}")
            return
        if answer is None:
            await self._head_of_line.wait_for_pages(MAX_WAIT_S)
            return
        last_priority, pulled = answer
        if last_priority == LAST_CLASS and _may_find_more(pulled):
            return
        # It may have been kept waiting by what the pull was offered and did not take.
        self._head_of_line.start()
        if last_priority < LAST_CLASS:
            await self._head_of_line.wait_for_pages(URGENT_LOOK_S)
        else:
            await self._wait_after(pulled, was_offered_all=not is_behind_wait)

    async def _gather_room(self) -> None:
        """Wait a little while there is little room."""
        for _ in range(NUM_NAPS):
            room, budget = self._page_budget.room(), self._page_budget
            has_rows = room.rows >= budget.max_rows * ROW_SHARE
            if has_rows and room.pages >= budget.total_pages * PAGE_SHARE:
                return
            await asyncio.sleep(NAP_S)

    async def pull(self, tasks: asyncio.TaskGroup) -> tuple[int, Pulled] | None:
        """Pull once and register what came before anyone else may look at what is held.

        Returns: the last class that was pulled, and what came; None where nothing may be pulled.
        Raises: SessionLost; RedisError if the pull was refused.
        """
        wait_s, self._wait_s = self._wait_s, 0.0
        async with self._lease.pulling():
            asked_at, room = time.monotonic(), self._page_budget.room()
            if wait_s:
                room = replace(room, pages=-(-room.pages // 2), rows=-(-room.rows // 2))
            last_priority = self._last_priority(room)
            if last_priority is None:
                return None
            takes_head_of_line = not (wait_s or self._head_of_line.is_taken)
            budget = self._budget(room, last_priority, takes_head_of_line)
            in_use = {name: num for name, num in budget.cached.items() if name not in budget.idle}
            with (
                self._head_of_line.offered(is_offered=takes_head_of_line),
                self._page_budget.offered(budget.pages, in_use),
            ):
                pulled = await self._session.call(lambda: self._ask(budget, wait_s), bulk=True)
                # Under the offer: to register a job may drop an older epoch of it, whose pages
                # would start the waiting job before all that came is counted.
                jobs = [self._arrivals.register(job) for job in pulled.jobs]
        self._suspects.pulled(len(jobs))
        if jobs:
            tasks.create_task(self._arrivals.bring_in(jobs))
            if len(jobs) < budget.max_jobs:
                # Hardly more waits: in one turn these are given to the engine, in the next they
                # are on their way, and only then the next call is packed.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        if pulled.endings:
            tasks.create_task(self._refusals.end(pulled.endings, asked_at))
        if pulled.status in NORMAL:
            self._prefixes.told(budget.lost_prefixes)
        self._metrics.pulls_spared += pulled.status is PullStatus.SPARED
        self._note_pause(is_paused=pulled.status is PullStatus.PAUSED)
        if pulled.status is PullStatus.RECONCILE:
            self._session.lose("another serial is current")
        elif pulled.status is PullStatus.CLEAR:
            self._parking.clear_for_suspect()
        else:
            self._parking.nothing_claimed()
        return last_priority, pulled

    async def _ask(self, budget: Budget, wait_s: float) -> Pulled:
        """Make the pull, behind the bell where it waits for that."""
        if wait_s:
            return await self._doorbell.pull(wait_s, self._lease.serial, budget)
        return await self._scripts.lease.pull(self._worker, self._lease.serial, budget)

    def _note_pause(self, *, is_paused: bool) -> None:
        """Say once that the pool was paused, and once that it goes on."""
        if is_paused != self._is_paused:
            self._is_paused = is_paused
            self._log.info("queue.paused" if is_paused else "queue.resumed")

    def _last_priority(self, room: Room) -> int | None:
        """Return the last class to pull, None where nothing may be pulled.

        Without room it is one that goes before something that runs, as the head-of-line job; and
        nothing passes the head-of-line job for too long.
        """
        if not self._engine.is_up or self._parking.is_parking:
            return None
        if self._suspects.keeps_others_off:
            return None
        if room.rows < 1 or room.pages < 1:
            lowest = None if self._head_of_line.is_taken else self._parking.lowest_priority()
            # Nothing goes before the first class.
            return lowest - 1 if lowest else None
        return (
            LAST_CLASS if self._head_of_line.may_be_passed(self._settings.hol_bypass_ms) else None
        )

    def _budget(self, room: Room, last_priority: int, takes_head_of_line: bool) -> Budget:
        """Say what there is room for, and whose prefixes lie in the cache."""
        cached, costs = self._prefixes.held(), self._page_budget.costs
        free_rows = max(0, room.rows)
        return Budget(
            pages=max(0, room.pages) if last_priority == LAST_CLASS else 0,
            page_size=costs.page_size,
            total_pages=costs.total_pages,
            max_jobs=max(1, min(self._settings.max_pull_jobs, free_rows)),
            take_head_of_line=takes_head_of_line,
            expected_output=costs.expected_outputs(),
            last_priority=last_priority,
            cached=cached,
            idle=cached.keys() - room.carried,
            lost_prefixes=self._prefixes.lost(),
            affinity_ms=self._settings.affinity_ms,
            max_rows=free_rows,
            crowd=self._suspects.crowd,
        )

    async def _wait_after(self, pulled: Pulled, *, was_offered_all: bool) -> None:
        wait_s = min(pulled.retry_ms / 1000 or MAX_WAIT_S, MAX_WAIT_S)
        match pulled.status:
            case PullStatus.JOBS | PullStatus.EMPTY | PullStatus.SPARED | PullStatus.PAUSED:
                if self._is_idle():
                    self._wait_s = wait_s
                else:
                    await self._doorbell.wait(wait_s)
            case PullStatus.FULL | PullStatus.SUSPECT | PullStatus.CLEAR if was_offered_all:
                await self._head_of_line.wait_for_pages(wait_s)

    def _is_idle(self) -> bool:
        """Tell whether so much is free that what changes in a second does not matter."""
        room, budget = self._page_budget.room(), self._page_budget
        has_pages = room.pages > budget.total_pages * IDLE_SHARE
        has_rows = room.rows > budget.max_rows * IDLE_SHARE
        return has_pages and has_rows and not self._head_of_line.is_taken


def _may_find_more(pulled: Pulled) -> bool:
    """Tell whether another pull may find something at once."""
    if pulled.status is PullStatus.JOBS:
        return pulled.is_left
    return pulled.status is PullStatus.RECONCILE
