"""The reaper keeps house for the pool once a second: ticks, and jobs of dead workers.

Nobody reaps until two leases after its own session opened: a server that restarted has dropped
everyone's lease, and the living need time to renew theirs. Nobody reaps itself.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tokenbus.producer.answers import answer_of
from tokenbus.producer.scripts.replies import RequeueStatus
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.exceptions import RedisError

    from tokenbus.producer.scripts.replies import Orphan
    from tokenbus.worker.held.pool_member import PoolMember

TICK_INTERVAL_S = 1.0
# Reaps under way at once: enough to empty a full worker within a second, few enough to leave the
# connections to the living.
_MAX_REAPS = 4
# Jobs of a lost worker that its line names; the others are told of as they are taken over.
_MAX_TOLD = 64


class Reaper:
    """The pool's housekeeping, as one worker does it."""

    def __init__(self, member: PoolMember) -> None:
        self._session = member.session
        self._scripts = member.scripts
        self._completion = member.completion
        self._worker = member.worker
        self._lease_ttl_s = member.settings.lease_ttl_s
        self._letter_bytes = member.settings.dead_letter_bytes
        self._are_letters_bounded = False
        self._metrics = member.metrics
        # Dead workers that were told of, until they are struck off.
        self._lost: set[str] = set()
        self._log = get_logger()

    async def run(self) -> None:
        """Keep house for ever."""
        await self._session.every(TICK_INTERVAL_S, self._keep_house, refused=self._note_refused)

    async def _keep_house(self) -> None:
        if not self._are_letters_bounded:
            queue = self._scripts.queue
            await self._session.call(lambda: queue.bound_letters(self._letter_bytes))
            self._are_letters_bounded = True
        while await self._session.call(self._completion.tick):
            pass
        if self._may_reap():
            await self._reap()

    def _note_refused(self, error: RedisError) -> None:
        self._log.error("pool.tick_refused", reason=answer_of(error).told)

    def _note_lost(self, orphans: Sequence[Orphan], struck: Sequence[str]) -> None:
        """Say once of each dead worker that it is lost, before its jobs are taken over."""
        dead = {orphan.worker: orphan.num_held for orphan in orphans} | dict.fromkeys(struck, 0)
        for worker, num_jobs in dead.items():
            if worker not in self._lost:
                job_ids = [orphan.job_id for orphan in orphans if orphan.worker == worker]
                self._log.warning(
                    "worker.lost",
                    dead_worker=worker,
                    jobs=num_jobs,
                    job_ids=job_ids[:_MAX_TOLD],
                )
        self._lost = set(dead) - set(struck)

    def _may_reap(self) -> bool:
        return time.monotonic() - self._session.opened_at > 2 * self._lease_ttl_s

    async def _reap(self) -> None:
        asked_at = time.monotonic()
        found, struck = await self._session.call(self._scripts.lease.scan_workers)
        # A worker that had no processor for longer than its lease may scan before it renews that.
        orphans = [orphan for orphan in found if orphan.worker != self._worker]
        self._note_lost(orphans, [worker for worker in struck if worker != self._worker])
        slots = asyncio.Semaphore(_MAX_REAPS)

        async def reap_one(index: int) -> None:
            orphan = orphans[index]
            async with slots:
                status = await self._session.call(
                    lambda: self._completion.reap(self._worker, orphan, asked_at)
                )
                if status is RequeueStatus.ENDING:
                    # A cancel of a job in `ending` changes nothing and ends it now.
                    await self._session.call(lambda: self._completion.cancel(orphan.job_id))
            self._metrics.jobs_reaped += 1
            self._log.warning(
                "lease.reclaimed",
                job_id=orphan.job_id,
                dead_worker=orphan.worker,
                epoch=orphan.epoch,
                status=status.value if status is not None else "ended",
            )

        outcomes = await asyncio.gather(
            *(reap_one(index) for index in range(len(orphans))), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
