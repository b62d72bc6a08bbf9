"""Pages: how many the jobs of this worker will still ask for, hence how many it may pull for.

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

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenbus.engine.scheduling.output_estimator import OutputEstimator
from tokenbus.producer.scripts.lease import MAX_ESTIMATES
from tokenbus.worker.held_job import Phase
from tokenbus.worker.jobs.prefix_shares import PrefixShares

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tokenbus.engine.types import EngineLimits, EngineStats
    from tokenbus.worker.held_job import HeldJob
    from tokenbus.worker.held_jobs import HeldJobs


_LEAVING = (Phase.ENDING, Phase.COMMITTED, Phase.RETURNING)


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
    """Page and row accounts of one engine.

    While a pull is under way `offered_pages` are spoken for, and so are the pages that it was told
    to be held of `offered_prefixes`.
    """

    def __init__(
        self, held_jobs: HeldJobs, limits: EngineLimits, total_pages: int, reserve_fraction: float
    ) -> None:
        self._held_jobs = held_jobs
        self.page_size = limits.page_size
        self.total_pages = total_pages
        self.max_rows = limits.max_num_seqs
        self.reserve_pages = int(total_pages * reserve_fraction)
        self.available_pages = total_pages
        self.offered_pages = 0
        self.offered_prefixes: Mapping[str, int] = {}
        self.shares = PrefixShares(limits.page_size)
        self.estimator = OutputEstimator()
        self._lanes: OrderedDict[str, None] = OrderedDict()

    def see_stats(self, stats: EngineStats) -> None:
        """Take the engine's own count after a step."""
        self.available_pages = stats.free_pages + stats.evictable_pages

    def pages_for(self, num_tokens: int) -> int:
        """Return the pages that hold `num_tokens`."""
        return -(-num_tokens // self.page_size)

    def room(self) -> Room:
        """Look at every job once and say what new ones may be pulled for."""
        tally = self._tally(None, ())
        carried = tally.held.union(tally.once)
        return Room(self._pages_beside(tally), self.max_rows - tally.rows, carried)

    def budget(self) -> int:
        """Return the pages that new jobs may be pulled for; negative while over-admitted."""
        return self._pages_beside(self._tally(None, ()))

    def free_rows(self) -> int:
        """Return the sequences that the engine could still run."""
        return self.max_rows - sum(job.num_rows for job in self._held_jobs if not job.is_waiting)

    def cost(self, job: HeldJob) -> int:
        """Return the pages a job needs from its start, shared ones included."""
        prepared = job.prepared
        if prepared is None:
            return job.pulled.pages + job.pulled.shared_pages
        num_choices, num_prompt = prepared.params.n, prepared.num_prompt_tokens
        expected = self.expected_output(job)
        if num_choices == 1:
            return -(-(num_prompt + expected) // self.page_size)
        # Each choice but the first has a copy of the page in which the prompt ends.
        num_copies = num_choices - 1 if num_prompt % self.page_size else 0
        return self.pages_for(num_prompt) + num_copies + num_choices * self.pages_for(expected)

    def expected_output(self, job: HeldJob) -> int:
        """Return the output tokens to count per choice: learned, and never less than is there."""
        if job.prepared is None:
            return 0
        max_tokens = job.prepared.params.max_tokens
        expected = self.estimator.expected(job.lane, max_tokens)
        if expected == max_tokens:
            return max_tokens
        return min(max_tokens, max(expected, job.longest_choice + 1))

    def expected_outputs(self) -> dict[str, int]:
        """Return the learned output length of each lane seen lately, for the pull to count by."""
        unbounded = 1 << 30
        learned = {lane: self.estimator.expected(lane, unbounded) for lane in self._lanes}
        return {lane: tokens for lane, tokens in learned.items() if tokens < unbounded}

    def exceeds_pool(self, job: HeldJob) -> bool:
        """Tell whether a tokenised job is too large for this engine, as the pull counts it.

        Given back with its exact size it goes to a larger worker, or fails where none lives.
        """
        if job.prepared is None:
            return False
        params = job.prepared.params
        output = params.n * self.pages_for(params.max_tokens)
        return self.pages_for(job.prepared.num_prompt_tokens) + output > self.total_pages

    def fits(self, job: HeldJob) -> bool:
        """Tell whether a waiting job may start: it has its pages and rows, or the engine alone."""
        if self.has_room(job):
            return True
        if self.offered_pages:
            return False
        others = (other for other in self._held_jobs if other is not job)
        return all(other.is_waiting for other in others)

    def has_room(self, job: HeldJob, without: Collection[HeldJob] = ()) -> bool:
        """Tell whether a waiting job would have its pages and rows if others were given back."""
        rows = self.free_rows() + sum(other.num_rows for other in without)
        # What those leave becomes free, but for what others that stay share with them.
        return rows >= job.num_rows and self._pages_beside(self._tally(job, without)) >= 0

    def is_as_pulled(self, job: HeldJob) -> bool:
        """Tell whether a tokenised job needs no more than the pull counted for it."""
        pulled = job.pulled
        return (
            job.num_rows <= pulled.num_choices
            and self.cost(job) <= pulled.pages + pulled.shared_pages
            and not self.shares_less(job)
        )

    def needs_less(self, job: HeldJob) -> bool:
        """Tell whether a tokenised job needs fewer pages of its own than the pull counted."""
        return self.cost(job) - self.shares.pages_of(job) < job.pulled.pages

    def shares_less(self, job: HeldJob) -> bool:
        """Tell whether a tokenised job shares fewer pages than the pull took for granted."""
        return self.shares.pages_of(job) < job.pulled.shared_pages

    def _pages_beside(self, tally: _Tally) -> int:
        """Return the pages that are left beside what was promised and what becomes free."""
        left = self.available_pages - self.reserve_pages - self.offered_pages - tally.own
        left -= sum(pages for name, pages in tally.once.items() if name not in tally.held)
        return left + sum(pages for name, pages in tally.freed.items() if name not in tally.held)

    def _tally(self, also: HeldJob | None, without: Collection[HeldJob]) -> _Tally:
        """Sum up, as if the waiting job `also` started and those `without` were given back."""
        # What the pull was told is held stays promised should its holder go meanwhile.
        tally = _Tally(once=dict(self.offered_prefixes))
        for job in self._held_jobs:
            if job.is_waiting and job is not also:
                continue
            tally.rows += job.num_rows
            name, promised = job.pulled.prefix, self.promised(job)
            shared = self.shares.pages_of(job) if name else 0
            if job.is_in_engine:
                if job in without:
                    tally.own -= self.cost(job) - promised - shared
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

    def promised(self, job: HeldJob) -> int:
        """Return the pages that a job will still take, or that it gives back only later."""
        if job.phase in _LEAVING:
            return self.held_pages(job) if job.was_added else 0
        cost = self.cost(job)
        if not job.is_in_engine:
            return cost
        if job.timings.first_token_at is None:
            return max(0, cost - job.cached_tokens // self.page_size)
        # The page of the newest token may not be taken before the next step.
        return max(0, cost - self.held_pages(job, num_newest=1))

    def observe(self, job: HeldJob, reasons: Sequence[str | None]) -> None:
        """Learn the output lengths of a job whose choices ended by themselves."""
        self._lanes[job.lane] = None
        self._lanes.move_to_end(job.lane)
        if len(self._lanes) > MAX_ESTIMATES:
            self._lanes.popitem(last=False)
        for length, reason in zip(job.lengths, reasons, strict=True):
            if reason in ("stop", "length"):
                self.estimator.observe(job.lane, length)

    def correct(self, job: HeldJob) -> None:
        """Raise the estimate of a lane after the engine preempted a job of it."""
        self.estimator.correct(job.lane, job.longest_choice)

    def held_pages(self, job: HeldJob, num_newest: int = 0) -> int:
        """Return the pages of a job's tokens, but for the newest ones of each choice."""
        if job.prepared is None or job.taken is None:
            return 0
        prompt, lengths = job.prepared.num_prompt_tokens, job.lengths
        if len(lengths) == 1:
            return -(-(prompt + max(0, lengths[0] - num_newest)) // self.page_size)
        counts = [max(0, length - num_newest) for length in lengths]
        return self.pages_for(prompt) + sum(self.pages_for(count) for count in counts)


def _raise_to(pages: dict[str, int], name: str, count: int) -> None:
    """Let an entry be at least `count`."""
    pages[name] = max(pages.get(name, 0), count)
