"""Staying alive in the eyes of the pool: renew, compare, and reconcile after every loss (R6 to R8).

The lease is prolonged only while the engine moves. Each renewal returns what the server says we
hold, and the server is right: what we do not know goes back, what it does not list is dropped.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tokenbus.producer.errors import ServerUnreachable
from tokenbus.producer.server.connection import is_away
from tokenbus.worker.errors import SessionLost
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.replies import HeldEntry
    from tokenbus.worker.held_jobs import HeldJobs
    from tokenbus.worker.jobs.settlement import Settlement
    from tokenbus.worker.publishing.publisher_pool import PublisherPool
    from tokenbus.worker.session import Session
    from tokenbus.worker.settings import WorkerSettings

_BACKOFF_START_S = 0.05
_BACKOFF_MAX_S = 2.0
# A session that was lost sooner than this after it was opened will hardly fare better at once.
_SHORT_LIFE_S = 1.0


class Lease:
    """Keeps one worker's lease.

    `engine_moves` tells whether the engine may be vouched for. A pull holds this lock until its
    jobs are known, so that a renewal never takes them for unknown.
    """

    def __init__(
        self,
        session: Session,
        scripts: Scripts,
        settlement: Settlement,
        held_jobs: HeldJobs,
        worker: str,
        settings: WorkerSettings,
        shown_url: str,
    ) -> None:
        self._session = session
        self._scripts = scripts
        self._settlement = settlement
        self._held_jobs = held_jobs
        self._worker = worker
        self._settings = settings
        self._shown_url = shown_url
        self._log = get_logger()
        self._total_pages = 0
        self._page_size = 1
        self.serial = 0
        self._lock = asyncio.Lock()
        self.engine_moves: Callable[[], bool] = lambda: True
        self.publishers: PublisherPool | None = None

    def size(self, total_pages: int, page_size: int) -> None:
        """Set what the lease tells other workers about the largest job that fits here."""
        self._total_pages = total_pages
        self._page_size = page_size

    @asynccontextmanager
    async def settlement(self) -> AsyncIterator[None]:
        """Let nobody compare what is held meanwhile; wait until nothing unknown is.

        What a lost pull brought counts as held here until its hand-back was answered (R8): a pull
        before that would hold more than there are pages for.
        """
        while True:
            await self._settlement.unknown_returned()
            async with self._lock:
                if not self._settlement.returns_unknown:
                    yield
                    return

    async def leave(self) -> None:
        """Tell the pool that this worker pulls no more, so that nothing is left to its cache."""
        try:
            await self._session.call(lambda: self._scripts.lease.leave(self._worker))
        except (SessionLost, RedisError) as error:
            self._log.warning("lease.leave_unsaid", reason=str(error))

    async def open(self, within_s: float) -> None:
        """Reconcile until it works, with back-off; then let calls through.

        Raises: ServerUnreachable after `within_s`.
        """
        wait_s, started_at = _BACKOFF_START_S, time.monotonic()
        while True:
            try:
                await self._reconcile()
            except (RedisError, OSError) as error:
                if not is_away(error):
                    raise
                waited_s = time.monotonic() - started_at
                if waited_s + wait_s > within_s:
                    raise ServerUnreachable(
                        f"{self._shown_url} did not answer for {waited_s:.1f} s: {error}"
                    ) from error
                self._log.warning(
                    "redis.unreachable", url=self._shown_url, retry_s=round(wait_s, 2)
                )
            else:
                return
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, _BACKOFF_MAX_S)

    async def run(self) -> None:
        """Renew every interval; reopen the session when it was lost.

        Raises: ServerUnreachable when the server stays away for `outage_timeout_s`.
        """
        pause_s = 0.0
        while True:
            try:
                async with asyncio.timeout(self._settings.renew_interval_s):
                    await self._session.lost()
            except TimeoutError:
                await self._renew()
                continue
            lived_s = time.monotonic() - self._session.opened_at
            is_short = lived_s < _SHORT_LIFE_S
            pause_s = min(max(2 * pause_s, _BACKOFF_START_S), _BACKOFF_MAX_S) if is_short else 0.0
            await asyncio.sleep(pause_s)
            await self._session.drop_connections()
            await self.open(self._settings.outage_timeout_s)
            self._log.info("redis.reconnected", url=self._shown_url, jobs=len(self._held_jobs))

    async def _renew(self) -> None:
        if not self.engine_moves():
            self._log.error("lease.withheld", reason="the engine does not move")
            return
        async with self._lock:
            try:
                held = await self._session.call(
                    lambda: self._scripts.lease.renew(
                        self._worker, self._ttl_ms, self._total_pages, self._page_size
                    ),
                    bulk=True,
                )
            except SessionLost:
                return
            except RedisError as error:
                self._session.lose(f"the renewal was refused: {error}")
                return
            self._session.renewed()
            if self.publishers is not None:
                self.publishers.renewed()
            self._compare(held)

    async def _reconcile(self) -> None:
        """Take a new serial, settle what we hold, and forget everything known about the logs."""
        async with self._lock:
            self.serial += 1
            held = await self._scripts.lease.reconcile(
                self._worker, self.serial, self._ttl_ms, self._total_pages, self._page_size
            )
            self._session.open()
            self._compare(held)
            # Last, so that no log of a job that is not ours any more is taken over.
            if self.publishers is not None:
                self.publishers.open_gate()
            for job in self._held_jobs:
                self._settlement.go_on(job)

    def _compare(self, held: list[HeldEntry]) -> None:
        epochs = {entry.job_id: entry.epoch for entry in held}
        for job in self._held_jobs:
            # A completion or hand-back under way has taken the entry out; its answer drops the job.
            if epochs.get(job.job_id) != job.epoch and not job.is_leaving:
                self._log.warning("lease.lost", job_id=job.job_id, epoch=job.epoch)
                self._settlement.stop(job)
                self._held_jobs.drop(job)
        for entry in held:
            known = self._held_jobs.get(entry.job_id)
            if known is None:
                self._settlement.return_unknown(entry.job_id, entry.epoch)
            elif entry.flag:
                self._settlement.flag(known, entry.flag)

    @property
    def _ttl_ms(self) -> int:
        return int(self._settings.lease_ttl_s * 1000)
