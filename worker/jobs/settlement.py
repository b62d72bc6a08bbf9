"""How a job stops being ours: committed and completed, given back, fenced off.

Each way is a chain of calls that may be cut by the loss of the session. Then the job stays in its
phase, and the reconcile either drops it or starts the chain again (R6, R7).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tokenbus.producer.contract.events import Finish
from tokenbus.producer.scripts.replies import RequeueStatus
from tokenbus.worker.errors import SessionLost
from tokenbus.worker.held_job import Phase
from tokenbus.worker.hooks import nobody
from tokenbus.worker.jobs.finish_log import log_finished
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tokenbus.producer.contract.events import Failure
    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.completion import JobCompletion
    from tokenbus.worker.held_job import HeldJob
    from tokenbus.worker.held_jobs import HeldJobs
    from tokenbus.worker.metrics import Metrics
    from tokenbus.worker.publishing.publisher_pool import PublisherPool
    from tokenbus.worker.session import Session

FLAG_REASONS = {"cancel": "cancelled", "expire": "expired"}


class Settlement:
    """Ends the worker's hold on jobs. `stop` takes a job out of the engine, whatever its state.

    `publishers` finish its log first, where it has begun.
    """

    def __init__(
        self,
        session: Session,
        scripts: Scripts,
        completion: JobCompletion,
        held_jobs: HeldJobs,
        worker: str,
        metrics: Metrics,
    ) -> None:
        self._session = session
        self._scripts = scripts
        self._completion = completion
        self._held_jobs = held_jobs
        self._worker = worker
        self._metrics = metrics
        self._tasks: asyncio.TaskGroup | None = None
        self._num_unknown = 0
        self._unknown_returned = asyncio.Event()
        self._unknown_returned.set()
        self._log = get_logger()
        self.stop: Callable[[HeldJob], None] = nobody
        self.publishers: PublisherPool | None = None

    def run_in(self, tasks: asyncio.TaskGroup) -> None:
        """Run the chains in a task group."""
        self._tasks = tasks

    def committed(self, job: HeldJob, finish: str) -> None:
        """Complete a job whose terminal entry stands in the log, as that entry says."""
        if job.phase is Phase.GONE:
            return
        self.stop(job)
        job.finish = Finish.parse(finish)
        job.move_to(Phase.COMMITTED)
        self._start(job, self._complete(job, finish))

    def fenced(self, job: HeldJob, epoch: int) -> None:
        """Drop a job that the log says belongs to a later owner; what is unsaid stays unsaid."""
        if job.phase is Phase.GONE:
            return
        self._metrics.jobs_fenced += 1
        self._log.warning("lease.lost", job_id=job.job_id, epoch=job.epoch, log_epoch=epoch)
        job.marker_epoch = max(job.marker_epoch, epoch)
        self._give_back(job, has_log=False)

    def preceded(self, job: HeldJob, last: int) -> None:
        """Give back a job that began from nothing while its log has tokens, to go on from those."""
        if job.phase is Phase.GONE:
            return
        self._log.warning("job.log_not_empty", job_id=job.job_id, epoch=job.epoch, last=last)
        job.num_logged = last
        self._give_back(job, has_log=False)

    def broken(self, job: HeldJob, why: str) -> None:
        """Give back a job whose log breaks the rules; another start may do better."""
        if job.phase is Phase.GONE:
            return
        self._log.error("job.log_broken", job_id=job.job_id, epoch=job.epoch, why=why)
        self._give_back(job, crashed=True, has_log=False)

    def hand_back(self, job: HeldJob, *, crashed: bool = False) -> None:
        """Return a job to the queue, after what it generated is in its log."""
        if job.phase in (Phase.PULLED, Phase.RUNNING):
            self._give_back(job, crashed=crashed)

    def flag(self, job: HeldJob, flag: str) -> None:
        """End a job that was cancelled or has expired, with what it has."""
        reason = FLAG_REASONS.get(flag)
        if reason is None or job.phase not in (Phase.PULLED, Phase.RUNNING):
            return
        job.flag = flag
        if job.taken is not None:
            self.decide(job, reason)

    def decide(self, job: HeldJob, reason: str, error: Failure | None = None) -> None:
        """End a job with what it has; its publisher commits that."""
        self.stop(job)
        job.move_to(Phase.ENDING)
        if self.publishers is not None:
            self.publishers.decide(job, reason, error)

    def settled(self, job: HeldJob, num_logged: int) -> None:
        """Note that a job that goes back has nothing left to log."""
        job.num_logged = num_logged
        job.is_settled = True
        self.go_on(job)

    def go_on(self, job: HeldJob) -> None:
        """Start the requeue of a job that goes back, unless its publisher still logs."""
        if job.phase is Phase.RETURNING and job.is_settled:
            self._start(job, self._requeue(job))

    def return_unknown(self, job_id: str, epoch: int) -> None:
        """Return a job that the server says is held here and that nobody here knows."""
        self._num_unknown += 1
        self._unknown_returned.clear()
        self._spawn(self._requeue_unknown(job_id, epoch))

    @property
    def returns_unknown(self) -> bool:
        """Tell whether the hand-back of an unknown job is under way."""
        return self._num_unknown > 0

    async def unknown_returned(self) -> None:
        """Wait until every hand-back of an unknown job was answered or given up."""
        await self._unknown_returned.wait()

    def _give_back(self, job: HeldJob, *, crashed: bool = False, has_log: bool = True) -> None:
        """Let a job go back, after its publisher has logged what it has if the log is ours."""
        self.stop(job)
        job.crashed = job.crashed or crashed
        if job.phase is Phase.COMMITTED:
            return
        job.move_to(Phase.RETURNING)
        if not has_log or job.publisher_link is None:
            job.is_settled = True
            self.go_on(job)
        # Also where nothing can be logged: its log may be ours again after the server lost a
        # second, and must not be ended by who has given the job back.
        if self.publishers is not None:
            self.publishers.give_back(job)

    def _start(self, job: HeldJob, chain: Coroutine[None, None, None]) -> None:
        if job.is_leaving:
            chain.close()
            return
        job.is_leaving = True
        self._spawn(self._leave(job, chain))

    def _spawn(self, chain: Coroutine[None, None, None]) -> None:
        if self._tasks is None:
            raise RuntimeError("the custody runs in no task group")
        self._tasks.create_task(chain)

    async def _leave(self, job: HeldJob, chain: Coroutine[None, None, None]) -> None:
        try:
            await chain
        except SessionLost:
            return
        except RedisError as error:
            self._log.exception("job.chain_refused", job_id=job.job_id)
            self._session.lose(f"a call was refused: {error}")
        finally:
            job.is_leaving = False

    async def _complete(self, job: HeldJob, finish: str) -> None:
        await self._session.call(lambda: self._completion.complete(job.job_id, finish))
        self._held_jobs.drop(job)
        log_finished(self._log, job, self._metrics)

    async def _requeue(self, job: HeldJob) -> None:
        status = await self._session.call(
            lambda: self._scripts.lease.requeue(
                self._worker,
                job.job_id,
                job.epoch,
                marker_epoch=job.marker_epoch,
                num_logged=job.num_logged,
                crashed=job.crashed,
            )
        )
        self._held_jobs.drop(job)
        if status is not RequeueStatus.REFUSED:
            self._metrics.jobs_requeued += 1
        if status is RequeueStatus.ENDING:
            # A cancel of a job in `ending` changes nothing and ends it now, not at the next tick.
            await self._session.call(lambda: self._completion.cancel(job.job_id))
        self._log.info(
            "job.requeued",
            job_id=job.job_id,
            epoch=job.epoch,
            status=status.value,
            crashed=job.crashed,
            logged_tokens=job.num_logged,
        )

    async def _requeue_unknown(self, job_id: str, epoch: int) -> None:
        try:
            await self._session.call(
                lambda: self._scripts.lease.requeue(self._worker, job_id, epoch)
            )
        except SessionLost:
            return
        except RedisError:
            self._log.exception("job.requeue_refused", job_id=job_id, epoch=epoch)
        finally:
            self._num_unknown -= 1
            if not self._num_unknown:
                self._unknown_returned.set()
