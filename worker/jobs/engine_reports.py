"""Reports of the engine: counted here and passed on to the publishers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tokenbus.engine.types import FinishReason
from tokenbus.producer.contract.events import Failure
from tokenbus.worker.held import job_orders
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.jobs.prompt import INVALID, TOO_LONG
from tokenbus.worker.logs import get_logger
from tokenbus.worker.messages.engine import Beat, RequestRefused, StepRecord

if TYPE_CHECKING:
    from tokenbus.worker.engine.current_engine import CurrentEngine
    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.held.held_jobs import HeldJobs
    from tokenbus.worker.jobs.head_of_line import HeadOfLine
    from tokenbus.worker.jobs.held_prefixes import HeldPrefixes
    from tokenbus.worker.jobs.page_budget import PageBudget
    from tokenbus.worker.jobs.settlement import Settlement
    from tokenbus.worker.jobs.suspects import Suspects
    from tokenbus.worker.messages.engine import EngineReady, Report
    from tokenbus.worker.metrics import Metrics
    from tokenbus.worker.publishing.publisher_pool import PublisherPool


class EngineReports:
    """Receives the engine's reports on the event loop, in order, its death and restart included."""

    def __init__(
        self,
        *,
        held_jobs: HeldJobs,
        engine: CurrentEngine,
        page_budget: PageBudget,
        prefixes: HeldPrefixes,
        settlement: Settlement,
        head_of_line: HeadOfLine,
        suspects: Suspects,
        publishers: PublisherPool,
        metrics: Metrics,
    ) -> None:
        self._held_jobs = held_jobs
        self._engine = engine
        self._page_budget = page_budget
        self._prefixes = prefixes
        self._settlement = settlement
        self._head_of_line = head_of_line
        self._suspects = suspects
        self._publishers = publishers
        self._metrics = metrics
        self._token_times = held_jobs.book.token_times
        # Bound once: every line would bind a lazy one anew, whether it is written or not.
        self._log = get_logger().bind()

    def take(self, report: Report) -> None:
        """Handle one report."""
        match report:
            case StepRecord():
                self._take_step(report)
            case RequestRefused():
                self._take_refusal(report)
            case Beat(stats=stats):
                self._page_budget.see_stats(stats)
                self._engine.credit(0, flush=True)
            case _:
                raise TypeError(f"unexpected report {type(report).__name__}")

    def died(self) -> bool:
        """Hand back what is held; only what a dead engine had on board can be to blame for that.

        Returns: whether the search for whose fault it was goes on.
        """
        for job in self._held_jobs.in_phase(Phase.PULLED):
            self._settlement.hand_back(job, why="engine")
        return self._suspects.blame(self._held_jobs.in_phase(Phase.RUNNING))

    def restarted(self, ready: EngineReady) -> None:
        """Let jobs have the pages of a new engine, whose cache is empty."""
        self._page_budget.start_anew(ready.num_pages)
        self._prefixes.clear()
        self._head_of_line.pages_changed()

    def _take_step(self, step: StepRecord) -> None:
        now = time.monotonic()
        # Other processes begin at once. A publisher of this one decides on ends before it returns,
        # which must not come before the phases say which pages the engine has freed.
        if self._publishers.num_processes:
            self._publishers.take_step(step)
        self._page_budget.see_stats(step.stats)
        self._metrics.stepped(step.stats, step.step_s)
        find = self._held_jobs.by_request
        self._take_admissions(step, now)
        for request_id in step.preempted:
            job = find(request_id)
            if job is not None:
                job.num_preemptions += 1
                self._metrics.preemptions += 1
                self._page_budget.costs.correct(job)
                self._log.debug("job.preempted", job_id=job.job_id, tokens=job.last)
        jobs = list(map(find, step.request_ids))
        num_homeless, num_begun = self._count_tokens(step, jobs, now)
        for request_id in step.preempted:
            job = find(request_id)
            if job is not None:
                # After the token that was in flight, which comes with the same step.
                job.is_preempted = True
        self._suspects.stepped(delivered=bool(step.token_ids))
        if not self._publishers.num_processes:
            self._publishers.take_step(step)
        self._engine.credit(num_homeless)
        # With its first token a job is known to hold what until then it was promised as well.
        if step.ends or num_begun:
            self._head_of_line.pages_changed()

    def _take_admissions(self, step: StepRecord, now: float) -> None:
        """Note which jobs have their pages, and how long those waited that nobody had begun."""
        for admission in step.admitted:
            job = self._held_jobs.by_request(admission.request_id)
            if job is not None and job.timings.admitted_at is None:
                job.see_admission(now, admission.num_cached_tokens)
                if job.is_fresh:
                    waited_s = now - job.timings.submitted_at
                    self._metrics.queue_time[job.pulled.priority].add(waited_s)
                self._log.debug("job.admitted", job_id=job.job_id, cached=job.cached_tokens)

    def _count_tokens(
        self, step: StepRecord, jobs: list[HeldJob | None], now: float
    ) -> tuple[int, int]:
        """Count the tokens of a step and note which jobs the engine has ended.

        Returns: the tokens of jobs that no publisher has any more, and how many jobs have begun.
        """
        running = Phase.RUNNING
        num_homeless = num_begun = num_unseen = 0
        for job, choice, count in zip(jobs, step.choices, step.counts, strict=True):
            if job is None or job.publisher_link is None:
                num_homeless += count
                num_unseen += 1
            elif count and job.phase is running:
                num_begun += job.see_tokens(choice, count, now)
            else:
                num_unseen += 1
        # Before jobs end, of which this step is the last.
        self._token_times.stepped(now, jobs, step.counts, len(jobs) - num_unseen)
        for row, drafts in step.drafts:
            if (drafted := jobs[row]) is not None:
                drafted.drafts = drafted.drafts.plus(drafts)
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
            self._engine.stop(job)
        if reason is FinishReason.FAILED or job.num_running <= 0:
            job.move_to(Phase.ENDING)

    def _take_refusal(self, report: RequestRefused) -> None:
        job = self._held_jobs.by_request(report.request_id)
        if job is None or job.phase is not Phase.RUNNING:
            return
        code = INVALID if report.field else TOO_LONG
        failure = Failure(code, report.message, report.field or "max_tokens")
        job.move_to(Phase.ENDING)
        job_orders.decide(job, "failed", failure)
