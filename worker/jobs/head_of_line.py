"""The head-of-line job waits for pages first, and the pull loop behind it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from tokenbus.worker.held.held_job import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.held.held_jobs import HeldJobs
    from tokenbus.worker.jobs.start import RoomMaker, Starter


class HeadOfLine:
    """The place at the head of the line: one job is ready there but for its pages, or none.

    The pull loop waits here too: pages that become free are offered to that job before it.
    """

    def __init__(self, held_jobs: HeldJobs, starter: Starter, parking: RoomMaker) -> None:
        self._waiting = held_jobs.book.waiting
        self._starter = starter
        self._parking = parking
        self._since: float | None = None
        self._is_offered = False
        self._pages_changed = asyncio.Event()

    @property
    def is_taken(self) -> bool:
        """Tell whether a job waits there, or a pull under way may bring one."""
        return self._is_offered or bool(self._waiting)

    def may_be_passed(self, bypass_ms: int) -> bool:
        """Tell whether others may start before the job there, which has waited less than that."""
        return self._since is None or (time.monotonic() - self._since) * 1e3 < bypass_ms

    @contextlib.contextmanager
    def offered(self, *, is_offered: bool) -> Iterator[None]:
        """Keep the place for what a pull brings, where it was offered to that."""
        self._is_offered = is_offered
        try:
            yield
        finally:
            self._is_offered = False

    def join(self, job: HeldJob) -> None:
        """Let a job wait there from now on."""
        job.is_waiting = True
        self._since = time.monotonic()

    def start(self) -> None:
        """Start the job there if it fits, else make room for it where that is possible."""
        if not self._waiting:
            self._since = None
            return
        waiting = [job for job in self._waiting if job.phase is Phase.PULLED]
        for job in waiting:
            self._starter.admit(job)
            if job.is_waiting and job.taken is not None:
                self._parking.park_for(job)
        if not any(job.is_waiting for job in waiting):
            self._since = None

    def pages_changed(self) -> None:
        """Let the job there, and then the pull loop, have what may have become free."""
        self.start()
        self._pages_changed.set()

    def wake_pull_loop(self) -> None:
        """Let the pull loop look for room again, which the job there does not need."""
        self._pages_changed.set()

    def look_anew(self) -> None:
        """Take what has become free so far as seen; the next wait is for what comes later."""
        self._pages_changed.clear()
        self.start()

    async def wait_for_pages(self, wait_s: float) -> None:
        """Wait until pages may have become free since `look_anew`, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._pages_changed.wait()
