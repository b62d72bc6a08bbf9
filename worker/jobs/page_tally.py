"""The page tally: what each held job is promised, and all of it summed up from scratch.

What a job is promised, in pages of `page_size` tokens, L being prompt + expected output and S the
full pages that jobs of its prefix share:

    not admitted, preempted    L of every choice, its prompt counted once, less S
    admitted, no token yet     L less the prompt pages that the prefix cache gave
    streaming                  L less what it holds now for certain
    ended, not completed yet   what it held less S: free once the queue has answered

    S itself                   once per prefix, unless a job of it is in the engine and holds it
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tokenbus.worker.held.held_job import Phase

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.jobs.page_costs import PageCosts

LEAVING = (Phase.ENDING, Phase.COMMITTED, Phase.HANDING_BACK)


class Promise(NamedTuple):
    """What one job is promised: pages of its `own`, and those that it shares with its `prefix`.

    `rows` are those of the engine, `ended_rows` what it had there before it ended. `is_held`: it is
    in the engine and holds the shared pages.
    """

    own: int
    rows: int
    ended_rows: int
    prefix: str
    shared: int
    is_held: bool


def promise_to(job: HeldJob, costs: PageCosts) -> Promise:
    """Return what a job is promised that does not wait at the head of the line."""
    name, pages = job.pulled.prefix, _promised_pages(job, costs)
    shared = costs.shares.pages_of(job) if name else 0
    if job.is_in_engine:
        return Promise(pages, job.num_rows, 0, name, shared, is_held=True)
    shared = min(shared, pages)
    rows = (0, job.num_rows) if job.phase in LEAVING else (job.num_rows, 0)
    return Promise(pages - shared, *rows, name, shared, is_held=False)


def _promised_pages(job: HeldJob, costs: PageCosts) -> int:
    """Return the pages that a job will still take, or that it gives back only later."""
    if job.phase in LEAVING:
        return costs.held_pages(job) if job.was_added else 0
    cost = costs.cost(job)
    if not job.is_in_engine:
        return cost
    if job.timings.first_token_at is None:
        return max(0, cost - job.cached_tokens // costs.page_size)
    # The page of the newest token may not be taken before the next step.
    return max(0, cost - costs.held_pages(job, num_newest=1))


@dataclass(slots=True)
class PageTally:
    """Pages promised to jobs: `own` to each alone, `once` by prefix to all that share them.

    `rows` and `ended_rows` are those of all jobs that are counted. The shared pages of `held`
    prefixes are in use; those of `freed` ones were, by jobs that leave.
    """

    own: int = 0
    rows: int = 0
    ended_rows: int = 0
    once: dict[str, int] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    freed: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        jobs: Iterable[HeldJob],
        costs: PageCosts,
        *,
        offered: Mapping[str, int],
        also: HeldJob | None = None,
        without: Collection[HeldJob] = (),
    ) -> PageTally:
        """Sum up, as if the waiting job `also` started and those `without` were handed back.

        `offered` are the pages of prefixes that a pull was told are held: they stay promised should
        their holder go meanwhile.
        """
        tally = cls(once=dict(offered))
        for job in jobs:
            if job.is_waiting and job is not also:
                continue
            promise = promise_to(job, costs)
            tally.rows += promise.rows
            tally.ended_rows += promise.ended_rows
            if job not in without:
                tally._add(promise)
            elif promise.is_held:
                tally.own -= costs.cost(job) - promise.own - promise.shared
                _raise_to(tally.freed, promise.prefix, promise.shared)
        return tally

    def _add(self, promise: Promise) -> None:
        self.own += promise.own
        if promise.shared and promise.is_held:
            self.held.add(promise.prefix)
        elif promise.shared:
            _raise_to(self.once, promise.prefix, promise.shared)

    @property
    def pages(self) -> int:
        """Count what is promised in all, less what becomes free."""
        once = sum(pages for name, pages in self.once.items() if name not in self.held)
        return (
            self.own
            + once
            - sum(pages for name, pages in self.freed.items() if name not in self.held)
        )

    @property
    def carried(self) -> set[str]:
        """Name the prefixes whose shared pages are held or promised."""
        return self.held.union(self.once)


def _raise_to(pages: dict[str, int], name: str, count: int) -> None:
    """Let an entry be at least `count`."""
    pages[name] = max(pages.get(name, 0), count)
