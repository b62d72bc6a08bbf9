"""The page budget: pages that held jobs will still ask for, and what is left to pull for.

    budget = free + evictable - reserve - what a pull under way was offered
             - what is promised to jobs that are here

`jobs/page_tally` says what a job is promised, `jobs/promised_pages` keeps the sum.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenbus.worker.jobs.page_costs import PageCosts
from tokenbus.worker.jobs.page_tally import PageTally, promise_to
from tokenbus.worker.jobs.promised_pages import PromisedPages

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from tokenbus.engine.types import EngineLimits, EngineStats
    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.held.held_jobs import HeldJobs


@dataclass(frozen=True, slots=True)
class Room:
    """What new jobs may be pulled for; `pages` is negative while over-admitted.

    Of the `carried` prefixes, as of whenever they are read, the shared pages are held or promised:
    more jobs need only their own.
    """

    pages: int
    rows: int
    carried: AbstractSet[str]


class PageBudget:
    """Page and row accounts of one engine; `costs` says what each job needs.

    While a pull is under way the pages that it was `offered` are spoken for.
    """

    def __init__(
        self,
        held_jobs: HeldJobs,
        limits: EngineLimits,
        *,
        total_pages: int,
        reserve_fraction: float,
    ) -> None:
        self._held_jobs = held_jobs
        self.max_rows, self.total_pages = limits.max_num_seqs, total_pages
        self._reserve_pages = int(total_pages * reserve_fraction)
        self.available_pages = total_pages
        self._offered_pages = 0
        self._offered_prefixes: Mapping[str, int] = {}
        self.costs = PageCosts(limits.page_size, total_pages)
        self._promised = PromisedPages(held_jobs.book, self.costs)

    def see_stats(self, stats: EngineStats) -> None:
        """Take the engine's own count after a step."""
        self.available_pages = stats.free_pages + stats.evictable_pages

    def start_anew(self, num_pages: int) -> None:
        """Begin with an engine that has given out none of its pages."""
        self.available_pages = num_pages

    @contextmanager
    def offered(self, pages: int, prefixes: Mapping[str, int]) -> Iterator[None]:
        """Let nobody else count on what a pull was told is free until its answer is here.

        `prefixes` are those whose tokens, so many of each, it was told to be held.
        """
        self._offered_pages = pages
        self._offered_prefixes = {
            name: self.costs.pages_for(tokens) for name, tokens in prefixes.items()
        }
        try:
            yield
        finally:
            self._offered_pages, self._offered_prefixes = 0, {}

    def room(self) -> Room:
        """Say what new jobs may be pulled for."""
        promised = self._updated()
        return Room(self._left(), self.free_rows(), promised.carried)

    def budget(self) -> int:
        """Return the pages that new jobs may be pulled for; negative while over-admitted."""
        self._updated()
        return self._left()

    def free_rows(self) -> int:
        """Return the sequences that the engine could still run.

        Those of jobs that have ended run there no more, but until the queue has answered they count
        against as many again: no worker that cannot complete what it has pulls for ever.
        """
        promised = self._updated()
        free = self.max_rows - promised.num_rows
        return min(free, free + self.max_rows - promised.num_ended_rows)

    def fits(self, job: HeldJob) -> bool:
        """Tell whether a waiting job may start: it has its pages and rows, or the engine alone."""
        if self.has_room(job):
            return True
        num_others = self._updated().num_jobs - (0 if job.is_waiting else 1)
        return not self._offered_pages and num_others == 0

    def has_room(self, job: HeldJob, without: Collection[HeldJob] = ()) -> bool:
        """Tell whether a waiting job would have its pages and rows if others were handed back."""
        rows = self.free_rows() + sum(other.num_rows for other in without)
        if rows < job.num_rows:
            return False
        if not without:
            also = promise_to(job, self.costs) if job.is_waiting else None
            return self._free_pages - self._promised.promised(self._offered_prefixes, also) >= 0
        # What those leave becomes free, but for what others that stay share with them.
        tally = PageTally.of(
            self._held_jobs,
            self.costs,
            offered=self._offered_prefixes,
            also=job,
            without=without,
        )
        return self._free_pages - tally.pages >= 0

    def _updated(self) -> PromisedPages:
        self._promised.update()
        return self._promised

    def _left(self) -> int:
        """Return the pages that are left beside what was promised."""
        return self._free_pages - self._promised.promised(self._offered_prefixes)

    @property
    def _free_pages(self) -> int:
        return self.available_pages - self._reserve_pages - self._offered_pages
