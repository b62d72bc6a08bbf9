"""The step reader puts a step's tokens into job logs: text, stop strings, ends."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from tokenbus.engine.types import Fault, FaultCode, FinishReason
from tokenbus.producer.contract.events import Failure
from tokenbus.worker.messages.publishing import ChoiceStopped, Decided
from tokenbus.worker.publishing.log_states import LogState, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenbus.engine.containment import Containment, Guard
    from tokenbus.engine.types import TokenLogprobs
    from tokenbus.worker.messages.engine import StepRecord
    from tokenbus.worker.messages.publishing import PublisherReport
    from tokenbus.worker.publishing.job_log import JobLog


# Rows of a slice: after each, other tasks get their turn and the log writer calls, so that server
# and readers work on the first rows of a step while the next are read. The first slice is smaller,
# because until its call server and readers stand idle. Still smaller slices begin earlier, but
# their calls cost publisher and server more than that wins (benchmarks/RESULTS.md has the sweep).
SLICE_ROWS = 48
FIRST_ROWS = 24


@dataclass(slots=True)
class _Extras:
    """The parts of a row beside its tokens; most rows have none."""

    end: tuple[FinishReason | None, int | None, Fault | None] = (None, None, None)
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None


_NOTHING = _Extras()


def _rare_rows(step: StepRecord) -> dict[int, _Extras]:
    """Find the rows that bring more than tokens; the last step of a crowd has many."""
    rare: dict[int, _Extras] = {}
    for row, reason, stop_id, error in step.ends:
        rare.setdefault(row, _Extras()).end = reason, stop_id, error
    for row, logprobs in step.logprobs:
        rare.setdefault(row, _Extras()).logprobs = logprobs
    for row, prompt_logprobs in step.prompt_logprobs:
        rare.setdefault(row, _Extras()).prompt_logprobs = prompt_logprobs
    return rare


def _failure_of(job: JobLog, fault: Fault) -> Failure:
    """Return what the queue says of a fault, with the field that has asked for a bad grammar."""
    field = None
    if fault.code is FaultCode.GRAMMAR:
        chat = None if job.rules is None else job.rules.chat
        field = "grammar" if chat is None or not chat.tools else "tools"
    return Failure(fault.code.value, fault.message, field)


class StepReader:
    """Adds to job logs; `enqueue` is given each job with more to log, `emit` takes reports."""

    def __init__(
        self,
        job_logs: dict[int, JobLog],
        enqueue: Callable[[JobLog], None],
        emit: Callable[[PublisherReport], None],
        containment: Containment[JobLog],
    ) -> None:
        self._job_logs = job_logs
        self._enqueue = enqueue
        self._emit = emit
        self._containment = containment
        self.num_dropped = 0

    def take(self, step: StepRecord) -> Iterator[None]:
        """Add a step's tokens to their job logs; pause between slices.

        `num_dropped` grows by the tokens that are not to be logged. Rows of unknown jobs belong to
        another publisher, or the worker counts them. A job whose row raises fails alone.
        """
        for each in step.admitted:
            if each.request_id in self._job_logs:
                self._job_logs[each.request_id].cached_tokens = each.num_cached_tokens
        rows = enumerate(step.request_ids)
        places = accumulate(step.counts)
        guard = self._containment.guard(None, "its tokens became text")
        is_done = False
        while not is_done:
            with guard:
                yield from self._take_rows(step, rows, places, guard)
                is_done = True
            self.end_failed()

    def _take_rows(
        self,
        step: StepRecord,
        rows: Iterator[tuple[int, int]],
        places: Iterator[int],
        guard: Guard[JobLog],
    ) -> Iterator[None]:
        """Take the rows that are left; `places` yields where the tokens of the next one end."""
        rare = _rare_rows(step)
        token_ids, choices, counts = step.token_ids, step.choices, step.counts
        find, sent_at, opened = self._job_logs.get, step.sent_at, LogState.OPEN
        no_turn, queued = Turn.NONE, Turn.QUEUED
        num_taken, slice_end = 0, FIRST_ROWS
        for row, key in rows:
            count, choice = counts[row], choices[row]
            end = next(places)
            start = end - count
            job = find(key)
            if job is None:
                continue
            if num_taken == slice_end:
                slice_end = num_taken // SLICE_ROWS * SLICE_ROWS + SLICE_ROWS
                yield
            num_taken += 1
            guard.key = job
            if job.state is not opened or job.reasons[choice] is not None:
                self.num_dropped += count
            elif count == 1 and row not in rare and job.texts[choice].is_plain:
                # Nearly every row is like this; a microsecond here is a tenth of a core at 100,000
                # tokens per second.
                token_id = token_ids[start]
                job.append_one(choice, token_id, job.texts[choice].push_plain(token_id))
                job.last += 1
                if job.unlogged_since is None:
                    job.unlogged_since = sent_at
                if job.turn is no_turn:
                    job.turn = queued
                    job.enqueue(job)
            else:
                extras = rare.get(row, _NOTHING)
                self.num_dropped += self._take_row(
                    job, choice, token_ids[start:end], extras, sent_at
                )

    def end_failed(self) -> None:
        """End the jobs whose own text or log failed, as far as they are open."""
        for job, fault in self._containment.take().items():
            if job.state is LogState.OPEN:
                self._end(job, "failed", Failure("internal", fault.message))
                if job.turn is Turn.NONE and job.wants_log:
                    self._enqueue(job)

    def _take_row(
        self, job: JobLog, choice: int, ids: list[int], extras: _Extras, sent_at: float
    ) -> int:
        """Add the tokens of a row that has anything out of the ordinary."""
        ended, stop_id, error = extras.end
        # An aborted job is not ended here: the worker, which took it out of the engine, says what
        # becomes of it.
        reason = None if ended in (None, FinishReason.ABORTED) else ended.value
        if extras.prompt_logprobs is not None:
            job.prompt_logprobs = tuple(
                None if entry is None else _wire_logprobs(entry) for entry in extras.prompt_logprobs
            )
        num_dropped = 0
        if ids:
            is_last = reason is not None
            num_dropped = _add_tokens(job, choice, ids, is_last, stop_id, extras.logprobs)
            if job.unlogged_since is None:
                job.unlogged_since = sent_at
        if job.reasons[choice] is None:
            job.reasons[choice] = reason
        elif reason is None:
            self._emit(ChoiceStopped(job.key, choice))
        if reason == FinishReason.FAILED:
            fault = error or Fault(FaultCode.ENGINE, "the engine gave this sequence up")
            self._end(job, "failed", _failure_of(job, fault))
        elif all(reason is not None for reason in job.reasons):
            self._end(job, job.outcome(), None)
        if job.turn is Turn.NONE and job.wants_log:
            self._enqueue(job)
        return num_dropped

    def _end(self, job: JobLog, reason: str, error: Failure | None) -> None:
        """End a job whose last choice has ended."""
        job.decide(reason, error)
        self._emit(Decided(job.key, reason, list(job.reasons), job.lengths()))


def _add_tokens(
    job: JobLog,
    choice: int,
    ids: list[int],
    is_last: bool,
    stop_id: int | None,
    logprobs: tuple[TokenLogprobs, ...],
) -> int:
    """Add tokens with their text; return how many lie behind a stop string."""
    if job.transcript is None:
        raise RuntimeError(f"job {job.job_id} runs without a transcript")
    text, is_alone = job.texts[choice], len(ids) == 1 and not logprobs
    if is_alone and text.is_plain and not job.transcript.has_logprobs(choice):
        shown = text.push_last(ids[0], stop_id) if is_last else text.push_plain(ids[0])
        job.append_one(choice, ids[0], shown)
        job.last += 1
        return 0
    released = text.push(ids, is_last=is_last, stop_token_id=stop_id)
    wire = [_wire_logprobs(entry) for entry in logprobs[: len(released.ids)]]
    job.transcript.append(choice, released.ids, released.texts, wire)
    job.last = job.transcript.last
    if released.stopped_by is not None:
        job.reasons[choice] = FinishReason.STOP.value
    return len(ids) - len(released.ids)


def _wire_logprobs(entry: TokenLogprobs) -> list[Any]:
    """Return [logprob, rank, [[id, logprob] …]] of one token, and true if it was forced."""
    wire = [entry.logprob, entry.rank, [list(pair) for pair in entry.top]]
    return [*wire, True] if entry.forced else wire
