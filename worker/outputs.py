"""Turns what the engine reports into transcripts, outcomes and page counts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tokenbus.engine.types import FinishReason, TokenDelta
from tokenbus.producer.events import Failure
from tokenbus.worker.handoff import AbortRequest, Beat, Credit, RequestRefused, StepRecord
from tokenbus.worker.held_job import Phase
from tokenbus.worker.hooks import nobody
from tokenbus.worker.logs import get_logger
from tokenbus.worker.prompt import INVALID, TOO_LONG

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.engine.types import TokenLogprobs
    from tokenbus.worker.engine_link import EngineLink
    from tokenbus.worker.handoff import Report
    from tokenbus.worker.held_job import HeldJob
    from tokenbus.worker.ledger import Ledger
    from tokenbus.worker.metrics import Metrics
    from tokenbus.worker.roster import Roster

# Credit goes back in lumps: a message per confirmed token would cost more than the token.
CREDIT_LUMP_TOKENS = 256


class Outputs:
    """Receives the engine's reports on the event loop, in order.

    `touch` tells the publisher of new tokens; `pages_changed` whoever waits for pages.
    """

    def __init__(self, roster: Roster, ledger: Ledger, metrics: Metrics) -> None:
        self._roster = roster
        self._ledger = ledger
        self._metrics = metrics
        self._uncredited = 0
        self._log = get_logger()
        self.engine: EngineLink | None = None
        self.touch: Callable[[HeldJob], None] = nobody
        self.pages_changed: Callable[[], None] = lambda: None

    def take(self, report: Report) -> None:
        """Handle one report."""
        match report:
            case StepRecord():
                self._take_step(report)
            case RequestRefused():
                self._take_refusal(report)
            case Beat(stats=stats):
                self._ledger.see_stats(stats)
                self.credit(0, flush=True)
            case _:
                raise TypeError(f"unexpected report {type(report).__name__}")

    def credit(self, num_tokens: int, *, flush: bool = False) -> None:
        """Return room for tokens that were logged or dropped."""
        self._uncredited += num_tokens
        if self.engine is not None and self._uncredited >= (1 if flush else CREDIT_LUMP_TOKENS):
            self.engine.send(Credit(self._uncredited))
            self._uncredited = 0

    def stop(self, job: HeldJob) -> None:
        """Take a job out of the engine, if it is in it."""
        if job.phase is Phase.RUNNING and self.engine is not None:
            self.engine.send(AbortRequest(job.request_id))

    def forget(self, job: HeldJob) -> None:
        """Settle the accounts of a job that leaves the worker."""
        self.credit(max(0, job.last - job.num_credited))
        job.num_credited = max(job.num_credited, job.last)
        self.pages_changed()

    def _take_step(self, step: StepRecord) -> None:
        now = time.monotonic()
        self._ledger.see_stats(step.stats)
        self._metrics.peak_running = max(self._metrics.peak_running, step.stats.num_running)
        self._metrics.peak_waiting = max(self._metrics.peak_waiting, step.stats.num_waiting)
        for admission in step.admitted:
            job = self._roster.by_request(admission.request_id)
            if job is not None and job.timings.admitted_at is None:
                job.timings.admitted_at = now
                job.cached_tokens = admission.num_cached_tokens
                self._log.debug("job.admitted", job_id=job.job_id, cached=job.cached_tokens)
        for request_id in step.preempted:
            job = self._roster.by_request(request_id)
            if job is not None:
                job.num_preemptions += 1
                self._metrics.preemptions += 1
                self._ledger.correct(job)
                self._log.debug("job.preempted", job_id=job.job_id, tokens=job.last)
        for delta in step.deltas():
            self._take_delta(delta, now)
        if step.ends:
            self.pages_changed()

    def _take_delta(self, delta: TokenDelta, now: float) -> None:
        job = self._roster.by_request(delta.request_id)
        if job is None or job.phase is not Phase.RUNNING or job.reasons[delta.choice] is not None:
            self.credit(len(delta.token_ids))
            return
        if delta.prompt_logprobs is not None:
            job.prompt_logprobs = tuple(
                None if entry is None else _wire_logprobs(entry) for entry in delta.prompt_logprobs
            )
        if delta.token_ids:
            self._add_tokens(job, delta, now)
        if delta.finish_reason is not None and job.reasons[delta.choice] is None:
            job.reasons[delta.choice] = delta.finish_reason.value
        self._end_if_done(job, delta)
        self.touch(job)

    def _add_tokens(self, job: HeldJob, delta: TokenDelta, now: float) -> None:
        if job.transcript is None:
            raise RuntimeError(f"job {job.job_id} runs without a transcript")
        choice = delta.choice
        released = job.texts[choice].push(
            delta.token_ids,
            is_last=delta.finish_reason is not None,
            stop_token_id=delta.stop_token_id,
        )
        logprobs = [_wire_logprobs(entry) for entry in delta.logprobs[: len(released.ids)]]
        job.transcript.append(choice, released.ids, released.texts, logprobs)
        job.timings.see_tokens(now)
        self.credit(len(delta.token_ids) - len(released.ids))
        if released.stopped_by is not None:
            job.reasons[choice] = FinishReason.STOP.value
            if delta.finish_reason is None and self.engine is not None:
                self.engine.send(AbortRequest(job.request_id, choice))

    def _end_if_done(self, job: HeldJob, delta: TokenDelta) -> None:
        if delta.finish_reason is FinishReason.FAILED:
            self.stop(job)
            message = delta.error or "the engine gave this sequence up"
            job.decide("failed", Failure("engine", message))
        elif all(reason is not None for reason in job.reasons):
            self._ledger.observe(job)
            job.decide(job.outcome())

    def _take_refusal(self, report: RequestRefused) -> None:
        job = self._roster.by_request(report.request_id)
        if job is None or job.phase is not Phase.RUNNING:
            return
        code = INVALID if report.field else TOO_LONG
        job.decide("failed", Failure(code, report.message, report.field or "max_tokens"))
        self.touch(job)


def _wire_logprobs(entry: TokenLogprobs) -> list[Any]:
    """Return [logprob, rank, [[id, logprob] …]] of one token."""
    return [entry.logprob, entry.rank, [list(pair) for pair in entry.top]]
