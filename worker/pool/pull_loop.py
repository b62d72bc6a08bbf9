"""Pulls as many jobs as there are free pages for, and one more that waits at the head of the line.

After a pull that found nothing the worker waits on the doorbell; after one that found only what
does not fit, for pages; after one that left all to workers that hold its prefix, until that is
nobody's any more. What tokenises to more than the pull counted goes back, charge undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tokenbus.producer.contract.keys import NUM_PRIORITIES
from tokenbus.producer.scripts import Budget
from tokenbus.producer.scripts.replies import PullStatus
from tokenbus.worker.errors import SessionLost
from tokenbus.worker.held_job import Phase
from tokenbus.worker.hooks import nobody
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.completion import JobCompletion
    from tokenbus.producer.scripts.replies import Ending, Pulled, PulledJob
    from tokenbus.worker.held_job import HeldJob
    from tokenbus.worker.held_jobs import HeldJobs
    from tokenbus.worker.jobs.held_prefixes import HeldPrefixes
    from tokenbus.worker.jobs.page_budget import PageBudget, Room
    from tokenbus.worker.jobs.start import Starter
    from tokenbus.worker.metrics import Metrics
    from tokenbus.worker.pool.doorbell import Doorbell
    from tokenbus.worker.pool.lease import Lease
    from tokenbus.worker.pool.parking import Parking
    from tokenbus.worker.session import Session
    from tokenbus.worker.settings import WorkerSettings

# Nothing is waited for longer: the wake-up may be lost with its server.
MAX_WAIT_S = 1.0
# How often a full worker looks for a job that goes before what it runs; an empty look costs the
# server 14 us.
URGENT_LOOK_S = 0.25
LAST_CLASS = NUM_PRIORITIES - 1
# Answers of a pull that has looked at everything it was given, and those after which one follows.
NORMAL = (PullStatus.JOBS, PullStatus.EMPTY, PullStatus.FULL, PullStatus.SPARED)
AT_ONCE = (PullStatus.JOBS, PullStatus.RECONCILE)


class PullLoop:
    """The pull loop of one worker."""

    def __init__(
        self,
        session: Session,
        scripts: Scripts,
        completion: JobCompletion,
        doorbell: Doorbell,
        lease: Lease,
        starter: Starter,
        parking: Parking,
        page_budget: PageBudget,
        prefixes: HeldPrefixes,
        held_jobs: HeldJobs,
        worker: str,
        settings: WorkerSettings,
        metrics: Metrics,
    ) -> None:
        self._session = session
        self._scripts = scripts
        self._completion = completion
        self._doorbell = doorbell
        self._lease = lease
        self._starter = starter
        self._parking = parking
        self._page_budget = page_budget
        self._prefixes = prefixes
        self._held_jobs = held_jobs
        self._worker = worker
        self._settings = settings
        self._metrics = metrics
        self._log = get_logger()
        self._pages_changed = asyncio.Event()
        self._head_of_line_since: float | None = None
        self._line_is_offered = False
        self.open_log: Callable[[HeldJob], None] = nobody

    def pages_changed(self) -> None:
        """Let the head-of-line job and then the loop have what may have become free."""
        self._start_head_of_line()
        self._pages_changed.set()

    async def run(self) -> None:
        """Pull for ever; cancelled when the worker goes quiet."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._session.opened()
                self._pages_changed.clear()
                self._start_head_of_line()
                try:
                    last_priority, pulled = await self._pull(tasks)
                except SessionLost:
                    continue
                except RedisError as error:
                    self._log.exception("queue.pull_refused")
                    self._session.lose(f"the pull was refused: {error}")
                    continue
                if pulled is None:
                    await self._wait_for_pages()
                    continue
                if last_priority == LAST_CLASS and pulled.status in AT_ONCE:
                    continue
                # It may have been kept waiting by what the pull was offered and did not take.
                self._start_head_of_line()
                if last_priority < LAST_CLASS:
                    await self._wait_for_pages(URGENT_LOOK_S)
                else:
                    await self._wait_after(pulled)

    def _last_priority(self, room: Room) -> int:
        """Return the last class to pull, -1 for none.

        Without room it is one that goes before something that runs, as the head-of-line job; and
        nothing passes the head-of-line job for too long.
        """
        if not self._starter.can_start or self._parking.is_parking:
            return -1
        if room.rows < 1 or room.pages < 1:
            return -1 if self._line_is_taken() else self._parking.lowest_priority() - 1
        since = self._head_of_line_since
        passes = since is None or (time.monotonic() - since) * 1e3 < self._settings.hol_bypass_ms
        return LAST_CLASS if passes else -1

    def _start_head_of_line(self) -> None:
        waiting = [job for job in self._held_jobs.in_phase(Phase.PULLED) if job.is_waiting]
        for job in waiting:
            self._starter.admit(job)
            if job.is_waiting and job.taken is not None:
                self._parking.park_for(job)
        if not any(job.is_waiting for job in waiting):
            self._head_of_line_since = None

    async def _pull(self, tasks: asyncio.TaskGroup) -> tuple[int, Pulled | None]:
        """Pull once and register what came before anyone else may look at what we hold.

        Returns: the last class that was pulled, and what came; None where nothing may be pulled.
        """
        async with self._lease.settlement():
            asked_at, room = time.monotonic(), self._page_budget.room()
            last_priority = self._last_priority(room)
            if last_priority < 0:
                return last_priority, None
            takes_head_of_line = not self._line_is_taken()
            budget = self._budget(room, last_priority, takes_head_of_line)
            self._line_is_offered = takes_head_of_line
            # Until the answer is here, nobody else may count on what the pull was told is free.
            self._page_budget.offered_pages = budget.pages
            self._page_budget.offered_prefixes = {
                name: self._page_budget.pages_for(tokens)
                for name, tokens in budget.cached.items()
                if name not in budget.idle
            }
            try:
                pulled = await self._session.call(
                    lambda: self._scripts.lease.pull(self._worker, self._lease.serial, budget),
                    bulk=True,
                )
                # Under the offer: to register a job may forget an older epoch of it, whose pages
                # would start the waiting job before all that came is counted.
                jobs = [self._register(job) for job in pulled.jobs]
            finally:
                self._line_is_offered = False
                self._page_budget.offered_pages, self._page_budget.offered_prefixes = 0, {}
        for job in jobs:
            tasks.create_task(self._bring_in(job))
        if pulled.endings:
            tasks.create_task(self._end_refused(pulled.endings, asked_at))
        if pulled.status in NORMAL:
            self._prefixes.told(budget.lost_prefixes)
        self._metrics.pulls_spared += pulled.status is PullStatus.SPARED
        if pulled.status is PullStatus.RECONCILE:
            self._session.lose("another serial is current")
        elif pulled.status is PullStatus.CLEAR:
            self._parking.clear_for_suspect()
        else:
            self._parking.nothing_claimed()
        return last_priority, pulled

    def _budget(self, room: Room, last_priority: int, takes_head_of_line: bool) -> Budget:
        """Say what there is room for, and whose prefixes lie in the cache."""
        cached = self._prefixes.held()
        free_rows = max(0, room.rows)
        return Budget(
            pages=max(0, room.pages) if last_priority == LAST_CLASS else 0,
            page_size=self._page_budget.page_size,
            total_pages=self._page_budget.total_pages,
            max_jobs=max(1, min(self._settings.max_pull_jobs, free_rows)),
            take_head_of_line=takes_head_of_line,
            expected_output=self._page_budget.expected_outputs(),
            last_priority=last_priority,
            cached=cached,
            idle=cached.keys() - room.carried,
            lost_prefixes=self._prefixes.lost(),
            affinity_ms=self._settings.affinity_ms,
            max_rows=free_rows,
        )

    def _register(self, pulled: PulledJob) -> HeldJob:
        job = self._held_jobs.take(pulled)
        self._prefixes.pulled(job)
        self._metrics.jobs_pulled += 1
        if job.is_waiting:
            self._head_of_line_since = time.monotonic()
        self._log.debug(
            "job.received",
            job_id=job.job_id,
            epoch=job.epoch,
            attempts=pulled.attempts,
            pages=pulled.pages,
            head_of_line=pulled.head_of_line,
        )
        return job

    async def _bring_in(self, job: HeldJob) -> None:
        """Prepare a job and let its log be taken over, or give it back if it is too big."""
        await self._starter.prepare(job)
        self._prefixes.prepared(job)
        if job.phase is not Phase.PULLED:
            return
        if self._page_budget.exceeds_pool(job):
            await self._undo(job)
            return
        if job.prepared is not None and not job.is_waiting and not self._still_fits(job):
            if self._line_is_taken():
                await self._undo(job)
                return
            job.is_waiting = True
            self._head_of_line_since = time.monotonic()
        self.open_log(job)
        if self._page_budget.needs_less(job):
            self._pages_changed.set()  # A pull that found the pool full may find room now.

    def _line_is_taken(self) -> bool:
        """Tell whether a job waits at the head of the line, or a pull under way may bring one."""
        return self._line_is_offered or any(job.is_waiting for job in self._held_jobs)

    def _still_fits(self, job: HeldJob) -> bool:
        """Tell whether the exact size is covered by what the pull counted, or else by free room."""
        if self._page_budget.is_as_pulled(job):
            return True
        return self._page_budget.budget() >= 0 and self._page_budget.free_rows() >= 0

    async def _undo(self, job: HeldJob) -> None:
        try:
            await self._session.call(
                lambda: self._scripts.lease.unpull(
                    self._worker,
                    job.job_id,
                    job.epoch,
                    job.prompt_tokens,
                    loses_prefix=self._page_budget.shares_less(job),
                )
            )
        except SessionLost:
            self.open_log(job)
            return
        except RedisError:
            self._log.exception("job.undo_refused", job_id=job.job_id)
        else:
            self._metrics.jobs_undone += 1
        self._held_jobs.drop(job)

    async def _end_refused(self, endings: Iterable[Ending], asked_at: float) -> None:
        """Write the failed events of entries that the pull refused."""
        for ending in endings:
            self._log.warning("job.dead_lettered", job_id=ending.job_id, finish=ending.finish)
            try:
                await self._session.call(partial(self._completion.end_unowned, ending, asked_at))
            except SessionLost:
                continue
            except RedisError:
                self._log.exception("job.end_refused", job_id=ending.job_id)

    async def _wait_after(self, pulled: Pulled) -> None:
        wait_s = min(pulled.retry_ms / 1000 or MAX_WAIT_S, MAX_WAIT_S)
        match pulled.status:
            case PullStatus.EMPTY | PullStatus.SPARED:
                await self._doorbell.wait(wait_s)
            case PullStatus.FULL | PullStatus.SUSPECT | PullStatus.CLEAR:
                await self._wait_for_pages(wait_s)

    async def _wait_for_pages(self, wait_s: float = MAX_WAIT_S) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._pages_changed.wait()
