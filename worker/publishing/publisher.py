"""A publisher keeps the logs of its jobs and knows what each of them needs next.

It lives inside the worker process or in a process of its own. It obeys the worker's orders at once
and reports through `emit`; its log writers do whatever takes a call on the server.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tokenbus.engine.containment import Containment
from tokenbus.worker.errors import SessionLost
from tokenbus.worker.logs import get_logger
from tokenbus.worker.messages.engine import StepRecord
from tokenbus.worker.messages.publishing import (
    AllLogged,
    Broken,
    CloseGate,
    Configure,
    Decide,
    Drop,
    HandBack,
    OpenGate,
    Preceded,
    Renewed,
    Taken,
    TakeOver,
)
from tokenbus.worker.publishing.job_log import JobLog
from tokenbus.worker.publishing.log_states import LogAccess, LogState, Turn
from tokenbus.worker.publishing.log_writer import NUM_LOG_WRITERS, LogWriter
from tokenbus.worker.publishing.overdue import OverdueJobs
from tokenbus.worker.publishing.progress import ProgressCounter
from tokenbus.worker.publishing.step_reader import FIRST_ROWS, SLICE_ROWS, StepReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis.asyncio import Redis
    from transformers import PreTrainedTokenizerBase

    from tokenbus.engine.text.byte_table import ByteTable
    from tokenbus.producer.contract.events import Failure
    from tokenbus.producer.scripts import Scripts
    from tokenbus.worker.messages.publishing import Order, PublisherReport
    from tokenbus.worker.session import Session


class Publisher:
    """All job logs of one publisher. `emit` takes its reports, in order.

    `rows_to_call` is the number of jobs that make a call worth while: more while the rest of a step
    follows at once. Progress is reported after `report_after_s`, where each report costs a message.
    """

    def __init__(
        self,
        *,
        session: Session,
        redis: Redis,
        scripts: Scripts,
        tokenizer: PreTrainedTokenizerBase | ByteTable,
        worker: str,
        emit: Callable[[PublisherReport], None],
        report_after_s: float = 0.0,
    ) -> None:
        self.session = session
        self.scripts = scripts
        self.worker = worker
        self.emit = emit
        self.generation = 0
        self.progress_counter = ProgressCounter(emit, report_after_s)
        self._tokenizer = tokenizer
        self._job_logs: dict[int, JobLog] = {}
        self._num_added = 0
        self._overdue_jobs = OverdueJobs(self.touch)
        self._log_writers = [LogWriter(self, redis) for _ in range(NUM_LOG_WRITERS)]
        # What one job's text or log raises fails that job.
        self._containment: Containment[JobLog] = Containment()
        self._step_reader = StepReader(self._job_logs, self._enqueue, emit, self._containment)
        self._slices: Iterator[None] | None = None
        self.rows_to_call = 1
        self._tasks: asyncio.TaskGroup | None = None
        self._log = get_logger()

    def run_in(self, tasks: asyncio.TaskGroup) -> None:
        """Run the log writers in a task group."""
        self._tasks = tasks
        for log_writer in self._log_writers:
            tasks.create_task(log_writer.run())

    async def close(self) -> None:
        """Close the connections of log writers that have stopped."""
        for log_writer in self._log_writers:
            await log_writer.close()

    def obey(self, order: Order) -> None:
        """Carry one order out as far as it needs no server, and start what does.

        The first slice of a large step is taken at once, the rest soon and before any other order.
        """
        self._finish_slices()
        match order:
            case StepRecord():
                self._take(order)
            case Renewed(at, until_ms):
                self.session.renewed(at, until_ms)
            case OpenGate():
                self._open(order)
            case CloseGate():
                self.session.lose("the worker has lost its session")
            case TakeOver():
                self._add(order)
            case Decide(key, reason, error):
                self._decide(key, reason, error)
            case HandBack(key):
                self._hand_back(key)
            case Drop(key):
                self._drop(key)
            case Configure():
                raise ValueError("the publisher is configured already")

    def _take(self, step: StepRecord) -> None:
        """Take the first slice of a step now, and the rest in turns of its own."""
        self._slices = self._step_reader.take(step)
        self.rows_to_call = FIRST_ROWS // 2
        self._take_slice()
        if self._slices is not None and self._tasks is not None:
            self._tasks.create_task(self._take_rest())

    async def _take_rest(self) -> None:
        """Take one slice in each turn of the event loop; an error here ends the publisher."""
        await asyncio.sleep(0)
        while self._slices is not None:
            self.rows_to_call = SLICE_ROWS - FIRST_ROWS
            self._take_slice()
            await asyncio.sleep(0)

    def _finish_slices(self) -> None:
        while self._slices is not None:
            self._take_slice()

    def _take_slice(self) -> None:
        # Kept aside meanwhile: the worker may answer a report of this slice with an order at once.
        slices, self._slices = self._slices, None
        if slices is None:
            return
        is_done = next(slices, True) is not None
        if is_done:
            self.rows_to_call = 1
        else:
            self._slices = slices
        for log_writer in self._log_writers:
            log_writer.go_on()
        if not is_done:
            return
        num_dropped, self._step_reader.num_dropped = self._step_reader.num_dropped, 0
        if num_dropped:
            self.progress_counter.freed(num_dropped)

    def touch(self, job: JobLog) -> None:
        """Queue a job if it wants something of its log; safe to repeat."""
        if job.turn is Turn.NONE and job.wants_log:
            self._enqueue(job)

    def report_all_logged(self, job: JobLog) -> None:
        """Tell the worker of a job that goes back and has nothing left to log."""
        if job.is_all_logged:
            self.emit(AllLogged(self.generation, job.key, job.num_logged))

    def follow(self, job: JobLog, last: int, num_entries: int) -> None:
        """Go on where the log ends; a log with more tokens than were generated here breaks a rule.

        An end that is not in the log any more is written again.
        """
        job.num_logged, job.num_entries = last, num_entries
        if job.transcript is not None and last > job.last:
            job.set_access(LogAccess.BARRED)
            why = f"the log ends at {last}, memory at {job.last}"
            self.emit(Broken(self.generation, job.key, why))
        elif job.state is LogState.COMMITTED:
            job.move_to(LogState.ENDING)

    def taken(self, job: JobLog, last: int, num_entries: int) -> None:
        """Start or go on with a job whose log was taken over and ends at `last`.

        Tokens that the engine has generated from nothing do not belong behind another's.
        """
        is_ahead = job.access is LogAccess.AHEAD
        if is_ahead and last:
            job.num_logged = last
            job.set_access(LogAccess.BARRED)
            self.emit(Preceded(self.generation, job.key, last))
            return
        job.take_over()
        self.follow(job, last, num_entries)
        if is_ahead or job.access is LogAccess.BARRED:
            return
        if job.transcript is not None:
            self._report_taken(job)
        elif last == 0:
            self._begin(job)
            self._report_taken(job)
        elif self._tasks is not None:
            job.set_access(LogAccess.RESTORING)
            self._tasks.create_task(self._restore(job, last))

    def _enqueue(self, job: JobLog) -> None:
        job.turn = Turn.QUEUED
        job.enqueue(job)
        self._log_writers[job.writer_idx].go_on()

    def _open(self, order: OpenGate) -> None:
        self.generation = order.generation
        for log_writer in self._log_writers:
            log_writer.renew()
        for job in self._job_logs.values():
            job.void()
        self.session.open(order.renewed_at, order.until_ms)
        for job in list(self._job_logs.values()):
            self.touch(job)
            self.report_all_logged(job)

    def _add(self, order: TakeOver) -> None:
        # Neighbours of a step share a log writer, so that a slice of it is mostly one call.
        writer_idx = self._num_added // SLICE_ROWS % NUM_LOG_WRITERS
        self._num_added += 1
        log_writer = self._log_writers[writer_idx]
        job = JobLog(order, enqueue=log_writer.enqueue, writer_idx=writer_idx)
        self._job_logs[job.key] = job
        if order.is_ahead:
            self._begin(job)
            self._overdue_jobs.watch(job)
        self.touch(job)

    def _begin(self, job: JobLog) -> None:
        with self._containment.guard(job, "its text was begun"):
            job.restore((), self._tokenizer)
        self._step_reader.end_failed()

    def _decide(self, key: int, reason: str, error: Failure | None) -> None:
        job = self._job_logs.get(key)
        if job is not None and job.state is LogState.OPEN:
            job.decide(reason, error)
            self.touch(job)

    def _hand_back(self, key: int) -> None:
        job = self._job_logs.get(key)
        if job is not None and job.state is LogState.OPEN:
            job.move_to(LogState.HANDING_BACK)
            self.touch(job)
            self.report_all_logged(job)

    def _drop(self, key: int) -> None:
        job = self._job_logs.pop(key, None)
        if job is not None:
            job.move_to(LogState.DROPPED)
            self.progress_counter.freed(max(0, job.last - job.num_credited))
            # A call under way does not free them again.
            job.num_credited = max(job.last, job.num_credited)

    def _report_taken(self, job: JobLog) -> None:
        if job.transcript is None or job.state is not LogState.OPEN:
            return
        choices = range(len(job.reasons))
        ids = [job.transcript.ids_of(choice) for choice in choices]
        self.emit(Taken(self.generation, job.key, job.last, ids, list(job.reasons)))

    async def _restore(self, job: JobLog, last: int) -> None:
        """Read what earlier owners logged, up to the takeover."""
        generation, access = self.generation, LogAccess.UNKNOWN
        try:
            read = await self.session.call(lambda: self.scripts.log.story(job.job_id))
            events, chat = read
            tokens = [event for event in events or () if event.finish is None and event.to <= last]
            if (tokens[-1].to if tokens else 0) != last:
                self.session.lose(f"the log of {job.job_id} changed while it was read")
                return
            job.restore(tokens, self._tokenizer, chat)
            if generation == self.generation:
                access = LogAccess.KNOWN
            self._log.info("job.resumed", job_id=job.job_id, epoch=job.epoch, logged_tokens=last)
            self._report_taken(job)
        except SessionLost:
            return
        except RedisError as error:
            self._log.exception("job.resume_refused", job_id=job.job_id)
            access = LogAccess.BARRED
            self.emit(Broken(self.generation, job.key, f"its log cannot be read: {error}"))
        finally:
            job.set_access(access)
            self.touch(job)
            self.report_all_logged(job)
