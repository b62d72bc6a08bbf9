"""Settlement: how a held job leaves its worker: completed, handed back, fenced or dropped.

The life of a held job, all of it:

1. **Pulled.** The queue gives the job to this worker at a new epoch (`pool/pull_loop`, R1). Its
   prompt is tokenised; where it then needs more pages than there are, it is unpulled as if it had
   never been here (`pool/arrivals`).
2. **Its log is taken over** at that epoch, which fences off the owner before (`jobs/log_opening`,
   R2). A job without an owner before runs meanwhile; any other goes on where its log ends.
3. **Running.** The engine computes (`jobs/start`); the job's publisher logs the tokens (R3).
4. **Ending.** The outcome is decided: by its last token, a stop string, a cancel, its deadline or
   an error. The publisher logs the rest, and then the terminal entry (R4).
5. **Committed.** The terminal entry stands. Completion stores what it says and takes the job out
   of the queue (`jobs/completions`), and this worker drops it (R9): finished, failed, cancelled or
   expired.

It may leave otherwise:

6. **Handed back** while pulled or running: the worker drains, the engine died, another job needs
   the room (`pool/parking`), or its log cannot be continued. The publisher logs what there is and
   says when all is logged; then `requeue`, the script, puts the job in front again and notes how
   many tokens are logged (R5). A crash is told with what is known of it (`jobs/suspects`), and the
   job that is found guilty fails as `poison`. One that was cancelled ends instead of waiting.
7. **Fenced.** Its log belongs to a later owner. Nothing more is logged, and what the queue may
   still count as held here is handed back; where that is nothing, the queue refuses it.
8. **Cut off with the session.** Every call breaks off and the job keeps its phase. The reconcile
   says what the queue counts as held here (`pool/lease`, R6, R7): a job that it does not name is
   dropped, one that nobody here knows is handed back, and of the others the last step is done
   again: the publisher takes the logs over anew and answers anew, `resume_hand_back` requeues.
9. **Orphaned.** This worker dies, and its lease runs out. A reaper takes the log over at the next
   epoch and requeues the job, counting a crash if it had begun, or completes it where its end
   stands (`pool/reaper`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tokenbus.producer.contract.events import Finish
from tokenbus.producer.scripts.evidence import Crash
from tokenbus.producer.scripts.replies import RequeueStatus
from tokenbus.worker.errors import SessionLost
from tokenbus.worker.held import job_orders
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.jobs.completions import Completions
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tokenbus.producer.contract.events import Failure
    from tokenbus.worker.engine.current_engine import CurrentEngine
    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.held.pool_member import PoolMember

FLAG_REASONS = {"cancel": "cancelled", "expire": "expired"}


class Settlement:
    """Takes jobs out of the engine and then out of this worker, one way or the other.

    A call that breaks off with the session leaves its job in its phase, to be begun again.
    """

    def __init__(self, member: PoolMember, engine: CurrentEngine) -> None:
        self._session = member.session
        self._scripts = member.scripts
        self._completion = member.completion
        self._held_jobs = member.held_jobs
        self._worker = member.worker
        self._metrics = member.metrics
        self._traces = member.traces
        self._engine = engine
        self._tasks: asyncio.TaskGroup | None = None
        self._num_unknown = 0
        self._unknown_handed_back = asyncio.Event()
        self._unknown_handed_back.set()
        self._completions = Completions(member, self._spawn)
        self._log = get_logger()

    def run_in(self, tasks: asyncio.TaskGroup) -> None:
        """Make the calls from now on, in a task group."""
        self._tasks = tasks

    def committed(self, job: HeldJob, finish: str) -> None:
        """Complete a job whose terminal entry stands in the log, as that entry says."""
        if job.phase is Phase.GONE:
            return
        self._engine.stop(job)
        job.finish = Finish.parse(finish)
        job.move_to(Phase.COMMITTED)
        self._completions.add(job, finish)

    def fenced(self, job: HeldJob, epoch: int) -> None:
        """Hand a job back without another token: its log belongs to a later owner, at `epoch`."""
        if job.phase is Phase.GONE:
            return
        self._metrics.jobs_fenced += 1
        self._log.warning("lease.lost", job_id=job.job_id, epoch=job.epoch, log_epoch=epoch)
        job.marker_epoch = max(job.marker_epoch, epoch)
        self._begin_hand_back(job, why="fenced", has_log=False)

    def preceded(self, job: HeldJob, last: int) -> None:
        """Hand back a job that began from nothing while its log has tokens, to go on from those."""
        if job.phase is Phase.GONE:
            return
        self._log.warning("job.log_not_empty", job_id=job.job_id, epoch=job.epoch, last=last)
        job.num_logged = last
        self._begin_hand_back(job, why="preceded", has_log=False)

    def broken(self, job: HeldJob, why: str) -> None:
        """Hand back a job whose log breaks the rules; another start may do better."""
        if job.phase is Phase.GONE:
            return
        self._log.error("job.log_broken", job_id=job.job_id, epoch=job.epoch, why=why)
        self._begin_hand_back(job, crash=Crash(cause="log"), has_log=False)

    def hand_back(self, job: HeldJob, *, why: str = "", crash: Crash | None = None) -> None:
        """Return a job to the queue, after what it generated is in its log; `why` is for people."""
        if job.phase in (Phase.PULLED, Phase.RUNNING):
            self._begin_hand_back(job, why=why, crash=crash)

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
        self._engine.stop(job)
        job.move_to(Phase.ENDING)
        job_orders.decide(job, reason, error)

    def drop(self, job: HeldJob) -> None:
        """Let go of a job that the queue says is not held here."""
        self._engine.stop(job)
        self._held_jobs.drop(job)

    def all_logged(self, job: HeldJob, num_logged: int) -> None:
        """Note that a job that is handed back has nothing left to log."""
        job.num_logged = num_logged
        job.is_all_logged = True
        self.resume_hand_back(job)

    def resume_hand_back(self, job: HeldJob) -> None:
        """Requeue a job that is handed back, unless its publisher still logs."""
        if job.phase is Phase.HANDING_BACK and job.is_all_logged:
            self._let_leave(job, self._requeue(job))

    def hand_back_unknown(self, job_id: str, epoch: int) -> None:
        """Hand back a job that the queue says is held here and that nobody here knows."""
        self._num_unknown += 1
        self._unknown_handed_back.clear()
        self._spawn(self._requeue_unknown(job_id, epoch))

    @property
    def hands_back_unknown(self) -> bool:
        """Tell whether the hand-back of an unknown job is under way."""
        return self._num_unknown > 0

    async def unknown_handed_back(self) -> None:
        """Wait until every hand-back of an unknown job was answered or given up."""
        await self._unknown_handed_back.wait()

    def _begin_hand_back(
        self, job: HeldJob, *, why: str = "", crash: Crash | None = None, has_log: bool = True
    ) -> None:
        """Let a job go back, after its publisher has logged what it has if it owns the log."""
        self._engine.stop(job)
        job.crash = job.crash or crash
        job.why_back = job.why_back or why
        if job.phase is Phase.COMMITTED:
            return
        job.move_to(Phase.HANDING_BACK)
        if not has_log or job.publisher_link is None:
            job.is_all_logged = True
            self.resume_hand_back(job)
        # Also where nothing can be logged: its log may be this worker's again after the server lost
        # a second, and must not be ended by a worker that has handed the job back.
        job_orders.hand_back(job)

    def _let_leave(self, job: HeldJob, calls: Coroutine[None, None, None]) -> None:
        """Make the calls with which a job leaves, unless such calls are under way."""
        if job.is_leaving:
            calls.close()
            return
        job.is_leaving = True
        self._spawn(self._leave(job, calls))

    def _spawn(self, calls: Coroutine[None, None, None]) -> None:
        if self._tasks is None:
            raise RuntimeError("the settlement runs in no task group")
        self._tasks.create_task(calls)

    async def _leave(self, job: HeldJob, calls: Coroutine[None, None, None]) -> None:
        try:
            await calls
        except SessionLost:
            return
        except RedisError as error:
            self._log.exception("job.chain_refused", job_id=job.job_id)
            self._session.lose(f"a call was refused: {error}")
        finally:
            job.is_leaving = False

    async def _requeue(self, job: HeldJob) -> None:
        status = await self._session.call(
            lambda: self._scripts.lease.requeue(
                self._worker,
                job.job_id,
                job.epoch,
                marker_epoch=job.marker_epoch,
                num_logged=job.num_logged,
                crash=job.crash,
                passed=job.passed,
                why=job.why_back,
                lived=job.timings.lived,
            )
        )
        self._held_jobs.drop(job)
        if status is not RequeueStatus.REFUSED:
            self._metrics.left(job.pulled.priority, job.pulled.tenant, "requeued")
            self._traces.left([(job, "requeued")])
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
                lambda: self._scripts.lease.requeue(self._worker, job_id, epoch, why="unknown")
            )
        except SessionLost:
            return
        except RedisError:
            self._log.exception("job.requeue_refused", job_id=job_id, epoch=epoch)
        finally:
            self._num_unknown -= 1
            if not self._num_unknown:
                self._unknown_handed_back.set()
