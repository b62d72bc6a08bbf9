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

from tokenbus.producer.answers import SERVER_ERRORS, answer_of
from tokenbus.producer.server.connection import typed
from tokenbus.worker.errors import SessionLost
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.logs import get_logger
from tokenbus.worker.session import STALE_LEASES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from tokenbus.producer.answers import ServerAnswer
    from tokenbus.producer.scripts.lease import Renewal
    from tokenbus.producer.scripts.replies import HeldEntry
    from tokenbus.producer.server.url import ServerUrl
    from tokenbus.worker.engine.current_engine import CurrentEngine
    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.held.pool_member import PoolMember
    from tokenbus.worker.jobs.settlement import Settlement
    from tokenbus.worker.publishing.publisher_pool import PublisherPool

_BACKOFF_START_S = 0.05
# A server that has recovered is asked within a second.
_BACKOFF_MAX_S = 1.0
# A session that was lost sooner than this after it was opened will hardly fare better at once.
_SHORT_LIFE_S = 1.0


class Lease:
    """Keeps one worker's lease.

    `total_pages` of `page_size` tell other workers the size of the largest job that fits here. A
    pull holds this lock until its jobs are known, so that a renewal never takes them for unknown:
    one that meets what it does not know is made again without a pull.
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
        url: ServerUrl,
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
        self._url = url
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

    async def open(self, within_s: float, *, outlives_refusals: bool = False) -> None:
        """Reconcile until it works, with back-off; then let calls through.

        With `outlives_refusals` a server that answers and refuses, the credentials for instance, is
        asked for as long as it takes: the worker has served, so somebody changed something, and
        will be told by the log what to change.
        Raises: ServerUnreachable after `within_s`; ServerRefused unless refusals are outlived.
        """
        wait_s, started_at = _BACKOFF_START_S, time.monotonic()
        while True:
            try:
                await self._reconcile()
            except SERVER_ERRORS as error:
                answer = answer_of(error)
                waited_s = time.monotonic() - started_at
                is_too_long = answer.waits and waited_s + wait_s > within_s
                gives_up = is_too_long or not (answer.waits or outlives_refusals)
                failure = typed(error, self._url, round(waited_s, 1))
            else:
                return
            if gives_up:
                # Not inside the handler: no cause of it may quote a call.
                raise failure
            self._note_trouble(answer, wait_s)
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, _BACKOFF_MAX_S)

    def _note_trouble(self, answer: ServerAnswer, wait_s: float) -> None:
        write = self._log.warning if answer.waits else self._log.error
        write(
            "redis.unreachable" if answer.says_nothing else "redis.refused",
            url=str(self._url),
            code=answer.code,
            reason=answer.text,
            hint=answer.hint,
            retry_s=round(wait_s, 2),
        )

    async def run(self) -> None:
        """Renew every interval; reopen the session when it was lost.

        Raises: ServerUnreachable when the server stays away for `outage_timeout_s`; one that
        answers and refuses is waited for without an end.
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
            await self.open(self._settings.outage_timeout_s, outlives_refusals=True)
            self._log.info("redis.reconnected", url=str(self._url), jobs=len(self._held_jobs))

    async def _renew(self) -> None:
        if not self._engine.moves:
            self._log.error("lease.withheld", reason="the engine does not move")
            return
        if not await self._compared():
            async with self._lock:
                await self._compared(is_alone=True)

    async def _compared(self, *, is_alone: bool = False) -> bool:
        """Renew and compare; tell whether it is settled what is held.

        It is not while a pull is under way, which may have brought what nobody here knows.
        """
        asked = list(self._held_jobs)
        try:
            renewal = await self._session.call(
                lambda: self._scripts.lease.renew(
                    self._worker, self._ttl_ms, self._total_pages, self._page_size
                ),
                bulk=True,
            )
        except SessionLost:
            return True
        except RedisError as error:
            self._session.lose(f"the renewal was refused: {error}")
            return True
        held = renewal.held
        self._session.renewed(until_ms=self._until_ms(renewal))
        self._publishers.renewed()
        is_known = all(self._held_jobs.get(entry.job_id) is not None for entry in held)
        if not (is_known or is_alone) and self._lock.locked():
            return False
        self._compare(held, asked)
        return True

    async def _reconcile(self) -> None:
        """Take a new serial, compare what is held, and trust nothing that was known of the logs."""
        async with self._lock:
            self.serial += 1
            renewal = await self._scripts.lease.reconcile(
                self._worker, self.serial, self._ttl_ms, self._total_pages, self._page_size
            )
            self._session.open(until_ms=self._until_ms(renewal))
            self._compare(renewal.held, self._held_jobs)
            # Last, so that no log of a job that is held no more is taken over.
            self._publishers.open_gate()
            for job in self._held_jobs:
                self._settlement.resume_hand_back(job)

    def _until_ms(self, renewal: Renewal) -> int:
        """Return when what is written by a renewal is stale, in ms of the server's time."""
        return renewal.at_ms + STALE_LEASES * self._ttl_ms

    def _compare(self, held: list[HeldEntry], asked: Iterable[HeldJob]) -> None:
        """Settle what is held; `asked` are the jobs that were known before the server was asked."""
        epochs = {entry.job_id: entry.epoch for entry in held}
        for job in asked:
            # A completion or hand-back under way has taken the entry out; its answer drops the job.
            is_gone = job.is_leaving or job.phase is Phase.GONE
            if epochs.get(job.job_id) != job.epoch and not is_gone:
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
