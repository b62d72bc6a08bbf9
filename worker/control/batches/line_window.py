"""The window of a batch: so many of its lines in the queue at once, until each has its output."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from tokenbus.producer.answers import SERVER_ERRORS, answer_of
from tokenbus.producer.contract.result import JobEndedEarly
from tokenbus.producer.errors import (
    IdempotencyConflict,
    JobDropped,
    JobLost,
    JobUnknown,
    ProducerError,
    QueueFull,
    ServerError,
)
from tokenbus.producer.gateway.wire.api_error import ApiError
from tokenbus.producer.gateway.wire.refusals import api_error
from tokenbus.producer.stored.batch_record import BatchStatus
from tokenbus.producer.stored.derived_ids import job_of_line
from tokenbus.worker.control.batches.batch_line import BatchLine, line_job
from tokenbus.worker.control.batches.input_check import input_lines
from tokenbus.worker.control.batches.output_parts import OutputParts
from tokenbus.worker.control.batches.output_row import answered_row, ended_row, refused_row
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from tokenbus.producer.client.async_client import Job
    from tokenbus.producer.contract.result import JobResult
    from tokenbus.producer.stored.batch_record import BatchRecord
    from tokenbus.worker.control.batches.batch_line import LineJob
    from tokenbus.worker.control.batches.batch_tools import BatchTools
    from tokenbus.worker.control.batches.output_row import OutputRow

# Between two looks whether the batch is to end.
WATCH_S = 0.5
# Lines of one round trip.
_MAX_TOGETHER = 64
_OUTAGE_PAUSE_S = 0.5
_MAX_PAUSE_S = 5.0
# A result that was dropped for room is made anew, under another id, so many times.
_MAX_ATTEMPTS = 3
_TOLD = {
    BatchStatus.CANCELLED: ("batch_cancelled", "The batch was cancelled before this request."),
    BatchStatus.EXPIRED: ("batch_expired", "This request was not run within the batch's window."),
}


class LineWindow:
    """Runs the lines of one batch that have no output yet."""

    def __init__(self, tools: BatchTools, record: BatchRecord, token: str) -> None:
        self._tools = tools
        self._client = tools.client
        self._record = record
        self._parts = OutputParts(tools.files.contents, tools.batches, record.id, token)
        self._places = asyncio.Semaphore(tools.window)
        # Jobs that are waited for, so that they can be cancelled.
        self._waited: set[str] = set()
        self._ends_as = BatchStatus.COMPLETED
        self._log = get_logger()

    async def run(self, name: str) -> BatchStatus:
        """Run the lines of the input and return how the batch ends.

        Raises: LeaseTaken; what redis and the content store raise.
        """
        await self._look()
        try:
            async with asyncio.TaskGroup() as helpers:
                watching = helpers.create_task(self._watch())
                writing = helpers.create_task(self._parts.run())
                async with asyncio.TaskGroup() as lines:
                    await self._submit_all(name, lines)
                watching.cancel()
                writing.cancel()
            await self._parts.flush()
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None
        return self._ends_as

    async def _watch(self) -> None:
        """Look now and then whether the batch is to end; what is in the queue is cancelled then."""
        while self._ends_as is BatchStatus.COMPLETED:
            await asyncio.sleep(WATCH_S)
            with contextlib.suppress(*SERVER_ERRORS):
                await self._look()
        while True:
            for job_id in list(self._waited):
                with contextlib.suppress(ProducerError, *SERVER_ERRORS):
                    await self._client.cancel(job_id, self._record.tenant)
            await asyncio.sleep(WATCH_S)

    async def _look(self) -> None:
        state = await self._tools.batches.state(self._record.id)
        if state.status is BatchStatus.CANCELLING:
            self._ends_as = BatchStatus.CANCELLED
        elif await self._tools.batches.now_s() >= self._record.expires_at:
            self._ends_as = BatchStatus.EXPIRED

    async def _submit_all(self, name: str, lines: asyncio.TaskGroup) -> None:
        """Submit lines as places become free; each is waited for by a task of its own."""
        done = await self._tools.batches.done(self._record.id)
        ready: list[LineJob] = []
        async for number, text in input_lines(self._tools.files.contents, name):
            byte, bit = divmod(number, 8)
            if byte < len(done) and done[byte] >> (7 - bit) & 1:
                continue
            line = BatchLine.parse(number, text, self._record)
            assert isinstance(line, BatchLine), "the input was checked"
            if ready and (self._places.locked() or len(ready) >= _MAX_TOGETHER):
                await self._submit(ready, lines)
                ready = []
            if self._ends_as is not BatchStatus.COMPLETED:
                self._parts.add(self._unanswered(line))
                continue
            await self._places.acquire()
            job = self._prepared(line, 0)
            if job is None:
                self._places.release()
            else:
                ready.append(job)
        if ready:
            await self._submit(ready, lines)

    def _prepared(self, line: BatchLine, attempt: int) -> LineJob | None:
        """Return the job of a line; None for one that is refused, whose row is written."""
        try:
            return line_job(line, self._record, self._name(line, attempt), self._tools.max_tokens)
        except ApiError as error:
            self._parts.add(refused_row(self._record, line, error))
            return None

    def _name(self, line: BatchLine, attempt: int) -> str:
        return job_of_line(self._record.id, line.number, attempt, self._client.num_shards)

    async def _submit(self, jobs: list[LineJob], lines: asyncio.TaskGroup) -> None:
        """Submit jobs together; those that a full queue refuses wait for their time."""
        for job, answer in zip(jobs, await self._answers(jobs, 0), strict=True):
            lines.create_task(self._settle(job, answer))

    async def _answers(self, jobs: list[LineJob], attempt: int) -> list[Job | ProducerError]:
        """Return the queue's answers; a server that is away is asked again."""
        names = [self._name(job.line, attempt) for job in jobs]
        while True:
            try:
                return await self._client.submit_many(
                    [job.request for job in jobs], reserved_ids=names
                )
            except (ServerError, *SERVER_ERRORS) as error:
                reason = answer_of(error).told if isinstance(error, SERVER_ERRORS) else str(error)
                self._log.warning("batch.submit_failed", batch_id=self._record.id, reason=reason)
                await asyncio.sleep(_OUTAGE_PAUSE_S)

    async def _settle(self, job: LineJob, answer: Job | ProducerError) -> None:
        """Wait for the row of a line, and give its place to another."""
        try:
            self._parts.add(await self._row(job, answer))
        finally:
            self._places.release()

    async def _row(self, job: LineJob, answer: Job | ProducerError) -> OutputRow:
        """Return the row of a line, by as many submits as it takes."""
        attempt = 0
        while True:
            if isinstance(answer, QueueFull | ServerError):
                asked_s = answer.retry_after_s if isinstance(answer, QueueFull) else _OUTAGE_PAUSE_S
                # The batch may have to end meanwhile.
                await asyncio.sleep(min(asked_s, _MAX_PAUSE_S))
            elif isinstance(answer, ProducerError) and not isinstance(answer, IdempotencyConflict):
                return refused_row(self._record, job.line, api_error(answer))
            else:
                # A job that an earlier release submitted in other words is the line's all the same.
                try:
                    result = await self._result(self._name(job.line, attempt))
                except JobDropped:
                    attempt += 1
                except (JobUnknown, JobLost):
                    pass
                else:
                    return self._answered(job, result)
            if self._ends_as is not BatchStatus.COMPLETED:
                return self._unanswered(job.line)
            if attempt == _MAX_ATTEMPTS:
                told = "The answer was dropped for room."
                return ended_row(self._record, job.line, "answer_dropped", told)
            [answer] = await self._answers([job], attempt)

    async def _result(self, job_id: str) -> JobResult:
        """Wait for the result of a job, however it ended; a server that is away is asked again.

        Raises: JobUnknown, JobLost, JobDropped.
        """
        self._waited.add(job_id)
        try:
            while True:
                try:
                    return await self._client.result(job_id, tenant=self._record.tenant)
                except JobEndedEarly as ended:
                    return ended.result
                except (ServerError, *SERVER_ERRORS):
                    await asyncio.sleep(_OUTAGE_PAUSE_S)
        finally:
            self._waited.discard(job_id)

    def _answered(self, job: LineJob, result: JobResult) -> OutputRow:
        is_ours = result.finish.reason == "cancelled"
        if is_ours and self._ends_as is not BatchStatus.COMPLETED:
            return self._unanswered(job.line)
        return answered_row(self._record, job, result)

    def _unanswered(self, line: BatchLine) -> OutputRow:
        return ended_row(self._record, line, *_TOLD[self._ends_as])
