"""The page budget: pages that held jobs will still ask for, and what is left to pull for.

    budget = free + evictable - reserve - what a pull under way was offered
             - what is promised to jobs that are here

What a job is promised, in pages of `page_size` tokens, L being prompt + expected output and S the
full pages that jobs of its prefix share:

    not admitted, preempted    L of every choice, its prompt counted once, less S
    admitted, no token yet     L less the prompt pages that the prefix cache gave
    streaming                  L less what it holds now for certain
    ended, not completed yet   what it held less S: free once the queue has answered

    S itself                   once per prefix, unless a job of it is in the engine and holds it
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.jobs.page_costs import PageCosts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from tokenbus.engine.types import EngineLimits, EngineStats
    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.held.held_jobs import HeldJobs


_LEAVING = (Phase.ENDING, Phase.COMMITTED, Phase.HANDING_BACK)


@dataclass(frozen=True, slots=True)
class Room:
    """What new jobs may be pulled for; `pages` is negative while over-admitted.

    Of the `carried` prefixes the shared pages are held or promised: more jobs need only their own.
    """

    pages: int
    rows: int
    carried: set[str]


@dataclass(slots=True)
class _Tally:
    """Pages promised to jobs: `own` to each alone, `once` by prefix to all that share them.

    `rows` are those of all jobs that are counted. The shared pages of `held` prefixes are in use;
    those of `freed` ones were, by jobs that leave.
    """

    own: int = 0
    rows: int = 0
    once: dict[str, int] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    freed: dict[str, int] = field(default_factory=dict)


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
        self._max_rows = limits.max_num_seqs
        self._reserve_pages = int(total_pages * reserve_fraction)
        self.available_pages = total_pages
        self._offered_pages = 0
        self._offered_prefixes: Mapping[str, int] = {}
        self.costs = PageCosts(limits.page_size, total_pages)

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
        """Look at every job once and say what new ones may be pulled for."""
        tally = self._tally(None, ())
        carried = tally.held.union(tally.once)
        return Room(self._pages_beside(tally), self._max_rows - tally.rows, carried)

    def budget(self) -> int:
        """Return the pages that new jobs may be pulled for; negative while over-admitted."""
        return self._pages_beside(self._tally(None, ()))

    def free_rows(self) -> int:
        """Return the sequences that the engine could still run."""
        return self._max_rows - sum(job.num_rows for job in self._held_jobs if not job.is_waiting)

    def fits(self, job: HeldJob) -> bool:
        """Tell whether a waiting job may start: it has its pages and rows, or the engine alone."""
        if self.has_room(job):
            return True
        if self._offered_pages:
            return False
        others = (other for other in self._held_jobs if other is not job)
        return all(other.is_waiting for other in others)

    def has_room(self, job: HeldJob, without: Collection[HeldJob] = ()) -> bool:
        """Tell whether a waiting job would have its pages and rows if others were handed back."""
        rows = self.free_rows() + sum(other.num_rows for other in without)
        # What those leave becomes free, but for what others that stay share with them.
        return rows >= job.num_rows and self._pages_beside(self._tally(job, without)) >= 0

    def _pages_beside(self, tally: _Tally) -> int:
        """Return the pages that are left beside what was promised and what becomes free."""
        left = self.available_pages - self._reserve_pages - self._offered_pages - tally.own
        left -= sum(pages for name, pages in tally.once.items() if name not in tally.held)
        return left + sum(pages for name, pages in tally.freed.items() if name not in tally.held)

    def _tally(self, also: HeldJob | None, without: Collection[HeldJob]) -> _Tally:
        """Sum up, as if the waiting job `also` started and those `without` were handed back."""
        # What the pull was told is held stays promised should its holder go meanwhile.
        tally, costs = _Tally(once=dict(self._offered_prefixes)), self.costs
        for job in self._held_jobs:
            if job.is_waiting and job is not also:
                continue
            tally.rows += job.num_rows
            name, promised = job.pulled.prefix, self._promised(job)
            shared = costs.shares.pages_of(job) if name else 0
            if job.is_in_engine:
                if job in without:
                    tally.own -= costs.cost(job) - promised - shared
                    _raise_to(tally.freed, name, shared)
                    continue
                tally.own += promised
                if shared:
                    tally.held.add(name)
            elif job not in without:
                shared = min(shared, promised)
                tally.own += promised - shared
                if shared:
                    _raise_to(tally.once, name, shared)
        return tally

    def _promised(self, job: HeldJob) -> int:
        """Return the pages that a job will still take, or that it gives back only later."""
        costs = self.costs
        if job.phase in _LEAVING:
            return costs.held_pages(job) if job.was_added else 0
        cost = costs.cost(job)
        if not job.is_in_engine:
            return cost
        if job.timings.first_token_at is None:
            return max(0, cost - job.cached_tokens // costs.page_size)
        # The page of the newest token may not be taken before the next step.
        return max(0, cost - costs.held_pages(job, num_newest=1))


def _raise_to(pages: dict[str, int], name: str, count: int) -> None:
    """Let an entry be at least `count`."""
    pages[name] = max(pages.get(name, 0), count)
