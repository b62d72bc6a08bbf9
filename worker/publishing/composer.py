"""Adds the tokens of a step to the manuscripts: text, stop strings, and the ends that follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.engine.types import Fault, FaultCode, FinishReason
from tokenbus.producer.events import Failure
from tokenbus.worker.publishing.manuscript import State
from tokenbus.worker.publishing.messages import ChoiceStopped, Decided

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenbus.engine.types import TokenLogprobs
    from tokenbus.worker.handoff import StepRecord
    from tokenbus.worker.publishing.manuscript import Manuscript
    from tokenbus.worker.publishing.messages import Answer


# Rows after which others get their turn and the pump that has them calls: server and readers work
# on the first of a step while the next are written. Half as many cost a fifth more of the
# publisher's time; twice as many bring the middle of a step to its readers 0.1 ms later.
SLICE_ROWS = 32
# And of each step these first, so that server and readers begin a third of a millisecond earlier.
FIRST_ROWS = 8


class Composer:
    """Writes manuscripts. `queue` is told of a job with more to log, `emit` takes answers."""

    def __init__(
        self,
        manuscripts: dict[int, Manuscript],
        queue: Callable[[Manuscript], None],
        emit: Callable[[Answer], None],
    ) -> None:
        self._manuscripts = manuscripts
        self._queue = queue
        self._emit = emit
        self.num_dropped = 0

    def take(self, step: StepRecord) -> Iterator[None]:
        """Add a step's tokens to their manuscripts; pause between slices.

        `num_dropped` grows by those that are not to be logged. Rows of jobs that are not here are
        another publisher's, or the worker counts them.
        """
        for each in step.admitted:
            if each.request_id in self._manuscripts:
                self._manuscripts[each.request_id].cached_tokens = each.num_cached_tokens
        rare = {row for row, *_ in (*step.ends, *step.logprobs, *step.prompt_logprobs)}
        token_ids, choices, counts = step.token_ids, step.choices, step.counts
        find, sent_at, opened, queue = self._manuscripts.get, step.sent_at, State.OPEN, self._queue
        start = 0
        num_taken, slice_end = 0, FIRST_ROWS
        for row, key in enumerate(step.request_ids):
            count, choice = counts[row], choices[row]
            end = start + count
            job = find(key)
            if job is None:
                start = end
                continue
            if num_taken == slice_end:
                slice_end = num_taken // SLICE_ROWS * SLICE_ROWS + SLICE_ROWS
                yield
            num_taken += 1
            if job.state is not opened or job.reasons[choice] is not None:
                self.num_dropped += count
            elif count == 1 and row not in rare and job.texts[choice].is_plain:
                # What nearly every row is; a microsecond here is a tenth of a core at 100,000
                # tokens per second.
                token_id = token_ids[start]
                job.append_one(choice, token_id, job.texts[choice].push_plain(token_id))
                job.last += 1
                if job.unlogged_since is None:
                    job.unlogged_since = sent_at
                if not job.is_queued and not job.in_flight:
                    queue(job)
            else:
                self.num_dropped += self._take_row(job, step, row, token_ids[start:end])
            start = end

    def _take_row(self, job: Manuscript, step: StepRecord, row: int, ids: list[int]) -> int:
        """Add the tokens of a row that has anything out of the ordinary."""
        choice = step.choices[row]
        ended, stop_id, error = next((end[1:] for end in step.ends if end[0] == row), (None,) * 3)
        # Whoever takes a job out of the engine also says what becomes of it: not its last token.
        reason = None if ended in (None, FinishReason.ABORTED) else ended.value
        for other, prompt_logprobs in step.prompt_logprobs:
            if other == row:
                job.prompt_logprobs = tuple(
                    None if entry is None else _wire_logprobs(entry) for entry in prompt_logprobs
                )
        num_dropped = 0
        if ids:
            logprobs = next((found for other, found in step.logprobs if other == row), ())
            num_dropped = _add_tokens(job, choice, ids, reason is not None, stop_id, logprobs)
            if job.unlogged_since is None:
                job.unlogged_since = step.sent_at
        if job.reasons[choice] is None:
            job.reasons[choice] = reason
        elif reason is None:
            self._emit(ChoiceStopped(job.key, choice))
        if reason == FinishReason.FAILED:
            fault = error or Fault(FaultCode.ENGINE, "the engine gave this sequence up")
            self._end(job, "failed", Failure(fault.code.value, fault.message))
        elif all(reason is not None for reason in job.reasons):
            self._end(job, job.outcome(), None)
        if not job.is_queued and not job.in_flight and job.wants_log:
            self._queue(job)
        return num_dropped

    def _end(self, job: Manuscript, reason: str, error: Failure | None) -> None:
        """End a job of itself."""
        job.decide(reason, error)
        self._emit(Decided(job.key, reason, list(job.reasons), job.lengths()))


def _add_tokens(
    job: Manuscript,
    choice: int,
    ids: list[int],
    is_last: bool,
    stop_id: int | None,
    logprobs: tuple[TokenLogprobs, ...],
) -> int:
    """Add tokens with their text; return how many lie behind a stop string."""
    if job.transcript is None:
        raise RuntimeError(f"job {job.job_id} runs without a transcript")
    released = job.texts[choice].push(ids, is_last=is_last, stop_token_id=stop_id)
    wire = [_wire_logprobs(entry) for entry in logprobs[: len(released.ids)]]
    job.transcript.append(choice, released.ids, released.texts, wire)
    job.last = job.transcript.last
    if released.stopped_by is not None:
        job.reasons[choice] = FinishReason.STOP.value
    return len(ids) - len(released.ids)


def _wire_logprobs(entry: TokenLogprobs) -> list[Any]:
    """Return [logprob, rank, [[id, logprob] …]] of one token."""
    return [entry.logprob, entry.rank, [list(pair) for pair in entry.top]]
