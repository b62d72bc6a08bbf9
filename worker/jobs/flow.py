"""The job flow: hears each event of a held job and calls the part that has to act."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.worker.held import job_orders
from tokenbus.worker.held.held_job import Phase

if TYPE_CHECKING:
    from tokenbus.worker.engine.current_engine import CurrentEngine
    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.held.held_jobs import HeldJobs
    from tokenbus.worker.jobs.head_of_line import HeadOfLine
    from tokenbus.worker.jobs.held_prefixes import HeldPrefixes
    from tokenbus.worker.jobs.page_costs import PageCosts
    from tokenbus.worker.jobs.settlement import Settlement
    from tokenbus.worker.jobs.start import Starter
    from tokenbus.worker.messages.publishing import Committed, Decided, Progress, Taken
    from tokenbus.worker.metrics import Metrics


class JobFlow:
    """Passes events on: those that publishers tell (`JobEvents`), and that a job has left."""

    def __init__(
        self,
        *,
        held_jobs: HeldJobs,
        engine: CurrentEngine,
        costs: PageCosts,
        prefixes: HeldPrefixes,
        settlement: Settlement,
        starter: Starter,
        head_of_line: HeadOfLine,
        metrics: Metrics,
    ) -> None:
        self._engine = engine
        self._costs = costs
        self._prefixes = prefixes
        self._settlement = settlement
        self._starter = starter
        self._head_of_line = head_of_line
        self._metrics = metrics
        held_jobs.when_gone(self.gone)

    def taken(self, job: HeldJob, taken: Taken) -> None:
        """Start a job whose log was taken over."""
        self._starter.start(job, taken)

    def preceded(self, job: HeldJob, last: int) -> None:
        """Hand a job back that began from nothing while its log has tokens."""
        self._settlement.preceded(job, last)

    def decided(self, job: HeldJob, decided: Decided) -> None:
        """Note how a job ended by itself; its publisher commits that."""
        job.lengths = decided.lengths
        if decided.reason != "failed":
            self._costs.observe(job, decided.reasons)
        if job.phase is Phase.RUNNING:
            self._engine.stop(job)
            job.move_to(Phase.ENDING)
            self._head_of_line.pages_changed()

    def choice_stopped(self, job: HeldJob, choice: int) -> None:
        """Take a choice that met a stop string out of the engine."""
        self._engine.stop_choice(job, choice)

    def committed(self, job: HeldJob, committed: Committed) -> None:
        """Complete a job whose terminal entry stands in the log."""
        job.timings.published_at = committed.published_at
        job.timings.parse_s = committed.parse_s
        self._settlement.committed(job, committed.finish)

    def fenced(self, job: HeldJob, epoch: int) -> None:
        """Let go of a job whose log belongs to a later owner."""
        self._settlement.fenced(job, epoch)

    def broken(self, job: HeldJob, why: str) -> None:
        """Hand a job back whose log breaks the rules."""
        self._settlement.broken(job, why)

    def all_logged(self, job: HeldJob, num_logged: int) -> None:
        """Requeue a job that is being handed back and has nothing left to log."""
        self._settlement.all_logged(job, num_logged)

    def progressed(self, progress: Progress) -> None:
        """Count what a publisher has done."""
        self._metrics.published(progress)
        self._engine.credit(progress.freed_tokens)

    def gone(self, job: HeldJob) -> None:
        """Give up what a job had that has left: its prefix, its log, its pages."""
        self._prefixes.gone(job)
        job_orders.drop(job)
        self._head_of_line.pages_changed()
