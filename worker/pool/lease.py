"""The lease of a worker: renewed, compared, reconciled after every loss (R6 to R8).

The lease is prolonged only while the engine moves. Each renewal returns what the server says is
held here, and the server is right: what nobody here knows is handed back, what it does not list is
dropped.
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
    from collections.abc import AsyncIterator

    from tokenbus.producer.scripts.replies import HeldEntry
    from tokenbus.worker.engine.current_engine import CurrentEngine
    from tokenbus.worker.held.pool_member import PoolMember
    from tokenbus.worker.jobs.settlement import Settlement
    from tokenbus.worker.publishing.publisher_pool import PublisherPool

_BACKOFF_START_S = 0.05
_BACKOFF_MAX_S = 2.0
# A session that was lost sooner than this after it was opened will hardly fare better at once.
_SHORT_LIFE_S = 1.0


class Lease:
    """Keeps one worker's lease.

    `total_pages` of `page_size` tell other workers the size of the largest job that fits here. A
    pull holds this lock until its jobs are known, so that a renewal never takes them for unknown.
    """

    def __init__(
        self,
        member: PoolMember,
        *,
        settlement: Settlement,
        publishers: PublisherPool,
        engine: CurrentEngine,
        total_pages: int,
        page_size: int,
        shown_url: str,
    ) -> None:
        self._session = member.session
        self._scripts = member.scripts
        self._held_jobs = member.held_jobs
        self._worker = member.worker
        self._settings = member.settings
        self._settlement = settlement
        self._publishers = publishers
        self._engine = engine
        self._total_pages = total_pages
        self._page_size = page_size
        self._shown_url = shown_url
        self._log = get_logger()
        self._lock = asyncio.Lock()
        self.serial = 0

    @asynccontextmanager
    async def pulling(self) -> AsyncIterator[None]:
        """Let nobody compare what is held meanwhile; wait until nothing unknown is.

        What a lost pull brought counts as held here until its hand-back was answered (R8): a pull
        before that would hold more than there are pages for.
        """
        while True:
            await self._settlement.unknown_handed_back()
            async with self._lock:
                if not self._settlement.hands_back_unknown:
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
        if not self._engine.moves:
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
            self._publishers.renewed()
            self._compare(held)

    async def _reconcile(self) -> None:
        """Take a new serial, compare what is held, and trust nothing that was known of the logs."""
        async with self._lock:
            self.serial += 1
            held = await self._scripts.lease.reconcile(
                self._worker, self.serial, self._ttl_ms, self._total_pages, self._page_size
            )
            self._session.open()
            self._compare(held)
            # Last, so that no log of a job that is held no more is taken over.
            self._publishers.open_gate()
            for job in self._held_jobs:
                self._settlement.resume_hand_back(job)

    def _compare(self, held: list[HeldEntry]) -> None:
        epochs = {entry.job_id: entry.epoch for entry in held}
        for job in self._held_jobs:
            # A completion or hand-back under way has taken the entry out; its answer drops the job.
            if epochs.get(job.job_id) != job.epoch and not job.is_leaving:
                self._log.warning("lease.lost", job_id=job.job_id, epoch=job.epoch)
                self._settlement.drop(job)
        for entry in held:
            known = self._held_jobs.get(entry.job_id)
            if known is None:
                self._settlement.hand_back_unknown(entry.job_id, entry.epoch)
            elif entry.flag:
                self._settlement.flag(known, entry.flag)

    @property
    def _ttl_ms(self) -> int:
        return int(self._settings.lease_ttl_s * 1000)
