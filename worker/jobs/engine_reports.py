"""Takes what the engine reports: counts it and passes it on to the publishers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tokenbus.engine.types import FinishReason
from tokenbus.producer.contract.events import Failure
from tokenbus.worker.engine.messages import AbortRequest, Beat, Credit, RequestRefused, StepRecord
from tokenbus.worker.held_job import Phase
from tokenbus.worker.jobs.prompt import INVALID, TOO_LONG
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.worker.engine.link import EngineLink
    from tokenbus.worker.engine.messages import Report
    from tokenbus.worker.held_job import HeldJob
    from tokenbus.worker.held_jobs import HeldJobs
    from tokenbus.worker.jobs.page_budget import PageBudget
    from tokenbus.worker.metrics import Metrics
    from tokenbus.worker.publishing.messages import Decided, Progress
    from tokenbus.worker.publishing.publisher_pool import PublisherPool

# Credit goes back in lumps: a message per confirmed token would cost more than the token.
CREDIT_LUMP_TOKENS = 256


class EngineReports:
    """Receives the engine's reports on the event loop, in order.

    `pages_changed` tells whoever waits for pages.
    """

    def __init__(self, held_jobs: HeldJobs, page_budget: PageBudget, metrics: Metrics) -> None:
        self._held_jobs = held_jobs
        self._page_budget = page_budget
        self._metrics = metrics
        self._uncredited = 0
        self._log = get_logger()
        self.engine: EngineLink | None = None
        self.publishers: PublisherPool | None = None
        self.pages_changed: Callable[[], None] = lambda: None

    def take(self, report: Report) -> None:
        """Handle one report."""
        match report:
            case StepRecord():
                self._take_step(report)
            case RequestRefused():
                self._take_refusal(report)
            case Beat(stats=stats):
                self._page_budget.see_stats(stats)
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
        if self.publishers is not None:
            self.publishers.forget(job)
        self.pages_changed()

    def progressed(self, progress: Progress) -> None:
        """Count what a publisher has done."""
        self._metrics.published(progress)
        self.credit(progress.freed_tokens)

    def decided(self, job: HeldJob, decided: Decided) -> None:
        """Note how a job ended by itself; its publisher commits that."""
        job.lengths = decided.lengths
        if decided.reason != "failed":
            self._page_budget.observe(job, decided.reasons)
        if job.phase is Phase.RUNNING:
            self.stop(job)
            job.move_to(Phase.ENDING)
            self.pages_changed()

    def choice_stopped(self, job: HeldJob, choice: int) -> None:
        """Take a choice that met a stop string out of the engine."""
        if job.phase is Phase.RUNNING and self.engine is not None:
            self.engine.send(AbortRequest(job.request_id, choice))

    def _take_step(self, step: StepRecord) -> None:
        now = time.monotonic()
        # Other processes begin at once. A publisher of this one decides on ends before it returns,
        # which must not come before the phases say which pages the engine has freed.
        if self.publishers is not None and self.publishers.num_processes:
            self.publishers.take_step(step)
        self._page_budget.see_stats(step.stats)
        self._metrics.stepped(step.stats)
        find = self._held_jobs.by_request
        for admission in step.admitted:
            job = find(admission.request_id)
            if job is not None and job.timings.admitted_at is None:
                job.timings.admitted_at = now
                job.cached_tokens = admission.num_cached_tokens
                self._log.debug("job.admitted", job_id=job.job_id, cached=job.cached_tokens)
        for request_id in step.preempted:
            job = find(request_id)
            if job is not None:
                job.num_preemptions += 1
                self._metrics.preemptions += 1
                self._page_budget.correct(job)
                self._log.debug("job.preempted", job_id=job.job_id, tokens=job.last)
        jobs = list(map(find, step.request_ids))
        num_homeless, num_begun = self._progress_counter(step, jobs, now)
        for request_id in step.preempted:
            job = find(request_id)
            if job is not None:
                # After the token that was in flight, which comes with the same step.
                job.is_preempted = True
        if self.publishers is not None and not self.publishers.num_processes:
            self.publishers.take_step(step)
        self.credit(num_homeless)
        # With its first token a job is known to hold what until then it was promised as well.
        if step.ends or num_begun:
            self.pages_changed()

    def _progress_counter(
        self, step: StepRecord, jobs: list[HeldJob | None], now: float
    ) -> tuple[int, int]:
        """Count the tokens of a step and note which jobs the engine has ended.

        Returns: the tokens of jobs that no publisher has any more, and how many jobs have begun.
        """
        running = Phase.RUNNING
        num_homeless = num_begun = 0
        for job, choice, count in zip(jobs, step.choices, step.counts, strict=True):
            if job is None or job.publisher_link is None:
                num_homeless += count
            elif count and job.phase is running:
                job.is_preempted = False
                job.lengths[choice] += count
                num_begun += job.timings.see_tokens(now)
        for row, reason, *_ in step.ends:
            self._take_end(jobs[row], reason)
        return num_homeless, num_begun

    def _take_end(self, job: HeldJob | None, reason: FinishReason) -> None:
        """Note that the engine has ended a choice; with the last its pages are free there.

        The publisher comes to the same end on its own; until the queue has answered they count as
        held, so the phase must not wait for it.
        """
        if job is None or job.phase is not Phase.RUNNING:
            return
        job.num_running -= 1
        if reason is FinishReason.FAILED:
            self.stop(job)
        if reason is FinishReason.FAILED or job.num_running <= 0:
            job.move_to(Phase.ENDING)

    def _take_refusal(self, report: RequestRefused) -> None:
        job = self._held_jobs.by_request(report.request_id)
        if job is None or job.phase is not Phase.RUNNING:
            return
        code = INVALID if report.field else TOO_LONG
        failure = Failure(code, report.message, report.field or "max_tokens")
        job.move_to(Phase.ENDING)
        if self.publishers is not None:
            self.publishers.decide(job, "failed", failure)
