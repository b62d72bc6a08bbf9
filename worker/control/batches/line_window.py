"""The window of a batch: so many of its lines in the queue at once, until each has its output."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, TypeVar

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
from tokenbus.worker.control.batches.batch_key import BatchKey
from tokenbus.worker.control.batches.batch_line import BatchLine, line_job
from tokenbus.worker.control.batches.input_check import input_lines
from tokenbus.worker.control.batches.output_parts import OutputParts
from tokenbus.worker.control.batches.output_row import answered_row, ended_row, refused_row
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tokenbus.producer.client.async_client import Job
    from tokenbus.producer.contract.result import JobResult
    from tokenbus.producer.stored.batch_record import BatchRecord
    from tokenbus.worker.control.batches.batch_line import LineJob
    from tokenbus.worker.control.batches.batch_tools import BatchTools
    from tokenbus.worker.control.batches.output_row import OutputRow

    # What became of a submit; an ApiError is a limit of the key.
    Answer = Job | ProducerError | ApiError

T = TypeVar("T")

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
        self._key = BatchKey(tools.client.scripts.redis, record)
        self._parts = OutputParts(tools.files.contents, tools.batches, record.id, token)
        self._places = asyncio.Semaphore(tools.window)
        # Jobs that are waited for, so that they can be cancelled.
        self._waited: set[str] = set()
        self._ends_as = BatchStatus.COMPLETED
        self._is_ending = asyncio.Event()
        self._now_s = record.created_at
        self._log = get_logger()

    async def run(self, name: str) -> BatchStatus:
        """Run the lines of the input and return how the batch ends.

        Raises: LeaseTaken; what redis and the content store raise.
        """
        await self._look()
        try:
            async with asyncio.TaskGroup() as helpers:
                watching = helpers.create_task(self._watch())
                helpers.create_task(self._parts.run())
                async with asyncio.TaskGroup() as lines:
                    await self._submit_all(name, lines)
                watching.cancel()
                # Not cancelled: it may be in the middle of a part.
                self._parts.end()
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
        batches, record = self._tools.batches, self._record
        state = await batches.state(record.id)
        self._now_s = await batches.now_s()
        if state.status is BatchStatus.IN_PROGRESS and not await self._key.is_good():
            state = await batches.cancel(record.owner, record.id)
            self._log.info("batch.key_revoked", batch_id=record.id, key_id=record.key_id)
        if state.status is BatchStatus.CANCELLING:
            self._ends_as = BatchStatus.CANCELLED
        elif self._now_s >= record.expires_at:
            self._ends_as = BatchStatus.EXPIRED
        if self._ends_as is not BatchStatus.COMPLETED:
            self._is_ending.set()

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
            job = await self._prepared(line, 0)
            if job is None:
                self._places.release()
            else:
                ready.append(job)
        if ready:
            await self._submit(ready, lines)

    async def _prepared(self, line: BatchLine, attempt: int) -> LineJob | None:
        """Return the job of a line; None for one that is refused, whose row is written."""
        caller = await self._patiently(self._key.caller)
        name = self._name(line, attempt)
        try:
            return line_job(line, self._record, caller, name, self._tools.max_tokens)
        except ApiError as error:
            self._parts.add(refused_row(self._record, line, error))
            return None

    def _name(self, line: BatchLine, attempt: int) -> str:
        return job_of_line(self._record.id, line.number, attempt, self._client.num_shards)

    async def _submit(self, jobs: list[LineJob], lines: asyncio.TaskGroup) -> None:
        """Submit jobs together; those that a full queue refuses wait for their time."""
        for job, answer in zip(jobs, await self._answers(jobs, 0), strict=True):
            lines.create_task(self._finish_line(job, answer))

    async def _answers(self, jobs: list[LineJob], attempt: int) -> list[Answer]:
        """Return the queue's answers, or the limit of the key that leaves no room for a job."""
        refusals = [await self._refusal(job) for job in jobs]
        admitted = [job for job, refusal in zip(jobs, refusals, strict=True) if refusal is None]
        answers = iter(await self._submitted(admitted, attempt) if admitted else ())
        return [next(answers) if refusal is None else refusal for refusal in refusals]

    async def _refusal(self, job: LineJob) -> ApiError | None:
        """Count a job on the limits of the key; return why it has to wait, if it has."""
        request = job.request
        num_tokens = request.estimate_prompt_tokens() + request.n * request.max_tokens
        try:
            await self._patiently(lambda: self._key.admit(job.line.number, num_tokens))
        except ApiError as refusal:
            return refusal
        return None

    async def _submitted(self, jobs: list[LineJob], attempt: int) -> list[Job | ProducerError]:
        """Return the queue's answers; a server that is away is asked again."""
        names = [self._name(job.line, attempt) for job in jobs]
        weight = (await self._patiently(self._key.caller)).weight
        while True:
            try:
                return await self._client.submit_many(
                    [job.request for job in jobs], reserved_ids=names, weight=weight
                )
            except (ServerError, *SERVER_ERRORS) as error:
                reason = answer_of(error).told if isinstance(error, SERVER_ERRORS) else str(error)
                self._log.warning("batch.submit_failed", batch_id=self._record.id, reason=reason)
                await asyncio.sleep(_OUTAGE_PAUSE_S)

    async def _finish_line(self, job: LineJob, answer: Answer) -> None:
        """Wait for the row of a line, and give its place to another."""
        try:
            row = await self._row(job, answer)
            await self._patiently(lambda: self._key.refund_unused(row.number, row.num_tokens))
            self._parts.add(row)
        finally:
            self._places.release()

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return what a call on the server returns; one that is away is asked again."""
        while True:
            try:
                return await call()
            except SERVER_ERRORS:
                await asyncio.sleep(_OUTAGE_PAUSE_S)

    async def _pause(self, seconds: float) -> None:
        """Wait, until the batch has to end at the latest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, _MAX_PAUSE_S)):
                await self._is_ending.wait()

    def _told(self, answer: Answer) -> ApiError | None:
        """Return what is told of a line that is not tried again."""
        if isinstance(answer, ApiError):
            # A limit of the key that has no room for the line while the batch lives.
            retry_s = int(answer.headers.get("Retry-After", 0))
            is_hopeless = not retry_s or self._now_s + retry_s >= self._record.expires_at
            return answer if is_hopeless else None
        is_kept = isinstance(answer, QueueFull | ServerError | IdempotencyConflict)
        return api_error(answer) if isinstance(answer, ProducerError) and not is_kept else None

    async def _row(self, job: LineJob, answer: Answer) -> OutputRow:
        """Return the row of a line, by as many submits as it takes."""
        attempt = 0
        while True:
            refusal = self._told(answer)
            if refusal is not None:
                return refused_row(self._record, job.line, refusal)
            if isinstance(answer, ApiError | QueueFull | ServerError):
                await self._pause(_pause_of(answer))
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


def _pause_of(answer: ApiError | QueueFull | ServerError) -> float:
    """Return after how many seconds a line is tried again."""
    if isinstance(answer, ApiError):
        return int(answer.headers["Retry-After"])
    return answer.retry_after_s if isinstance(answer, QueueFull) else _OUTAGE_PAUSE_S
