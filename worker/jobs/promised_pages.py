"""The promised pages: what all held jobs are promised together, kept up to date job by job.

A look counts only those jobs anew whose promise may have changed since the last one:

    itself              phase, prompt, place in the line, admission: `HeldJob.changed`
    streaming           at the length at which its pages change: `HeldJob.recount_at`
    prefix              the shared pages of its prefix became more or fewer: `PrefixShares`
    lane                another output is expected of its lane, and that takes other pages

`PageTally.of` comes to the same by looking at every job.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.jobs.page_tally import LEAVING, promise_to

if TYPE_CHECKING:
    from collections.abc import KeysView, Mapping

    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.held.job_book import JobBook
    from tokenbus.worker.jobs.page_costs import PageCosts
    from tokenbus.worker.jobs.page_tally import Promise


@dataclass(slots=True)
class _SharedPages:
    """Shared pages of one prefix: how many jobs hold them, and how many lack how many of them."""

    num_holders: int = 0
    lacked: dict[int, int] = field(default_factory=dict)

    @property
    def promised(self) -> int:
        """Count the pages that nobody holds and somebody was promised."""
        return 0 if self.num_holders else max(self.lacked, default=0)

    def change(self, promise: Promise, by: int) -> None:
        """Count a job in (`by` 1) or out (-1)."""
        if promise.is_held:
            self.num_holders += by
            return
        num = self.lacked.get(promise.shared, 0) + by
        if num:
            self.lacked[promise.shared] = num
        else:
            del self.lacked[promise.shared]


@dataclass(slots=True)
class _LaneJobs:
    """Counted jobs of one lane, by how far their prompt reaches into its last page.

    With another number of `expected` tokens a job takes other pages only where those, behind that
    rest of a prompt, do.
    """

    expected: int
    by_rest: dict[int, set[HeldJob]] = field(default_factory=dict)

    def affected(self, expected: int, page_size: int) -> list[set[HeldJob]]:
        """Expect another output; return the jobs that may take other pages for it."""
        before, self.expected = self.expected, expected
        return [
            jobs
            for rest, jobs in self.by_rest.items()
            if -(-(rest + before) // page_size) != -(-(rest + expected) // page_size)
        ]


class PromisedPages:
    """What the held jobs of one worker are promised; `update` comes before every other look."""

    def __init__(self, book: JobBook[HeldJob], costs: PageCosts) -> None:
        self._changed = book.changed
        self._costs = costs
        self._promises: dict[HeldJob, Promise] = {}
        self._own_pages = 0
        self._shared_pages = 0
        self._shared: dict[str, _SharedPages] = {}
        self._lanes: dict[str, _LaneJobs] = {}
        self._places: dict[HeldJob, tuple[str, int]] = {}
        self.num_rows = 0
        self.num_ended_rows = 0

    @property
    def num_jobs(self) -> int:
        """Count the jobs that do not wait at the head of the line."""
        return len(self._promises)

    @property
    def carried(self) -> KeysView[str]:
        """Name the prefixes whose shared pages are held or promised, as of whenever it is read."""
        return self._shared.keys()

    def update(self) -> None:
        """Count every job anew that has changed since the last call."""
        costs, changed = self._costs, self._changed
        for name in costs.changed_lanes:
            lane = self._lanes.get(name)
            if lane is not None:
                changed.update(*lane.affected(costs.expected_of(name), costs.page_size))
        costs.changed_lanes.clear()
        while changed:
            self._recount(changed.pop())

    def promised(self, offered: Mapping[str, int], also: Promise | None = None) -> int:
        """Count the pages promised in all, shared ones once.

        `offered` are those of prefixes that a pull was told are held; `also` is what one job more
        would be promised.
        """
        pages = self._own_pages + self._shared_pages
        if also is not None:
            pages += also.own
            if also.shared:
                shared = max(offered.get(also.prefix, 0), also.shared)
                offered = {**offered, also.prefix: shared}
        for name, num_pages in offered.items():
            shared_pages = self._shared.get(name)
            if shared_pages is None:
                pages += num_pages
            elif not shared_pages.num_holders:
                pages += max(0, num_pages - shared_pages.promised)
        return pages

    def _recount(self, job: HeldJob) -> None:
        before = self._promises.pop(job, None)
        if before is not None:
            self._count(before, -1)
        if job.is_waiting or job.phase is Phase.GONE:
            self._leave_lane(job)
            return
        promise = self._promises[job] = promise_to(job, self._costs)
        self._count(promise, 1)
        if job.prepared is None or job.phase in LEAVING:
            self._leave_lane(job)
            return
        self._join_lane(job)
        if promise.is_held and job.timings.first_token_at is not None:
            job.recount_at = self._costs.lengths_of_change(job)

    def _count(self, promise: Promise, by: int) -> None:
        self._own_pages += by * promise.own
        self.num_rows += by * promise.rows
        self.num_ended_rows += by * promise.ended_rows
        if not promise.shared:
            return
        shared = self._shared.setdefault(promise.prefix, _SharedPages())
        before = shared.promised
        shared.change(promise, by)
        self._shared_pages += shared.promised - before
        if not shared.num_holders and not shared.lacked:
            del self._shared[promise.prefix]

    def _join_lane(self, job: HeldJob) -> None:
        place = (job.lane, self._costs.rest_of(job))
        if self._places.get(job) == place:
            return
        self._leave_lane(job)
        name, rest = self._places[job] = place
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _LaneJobs(self._costs.expected_of(name))
        lane.by_rest.setdefault(rest, set()).add(job)

    def _leave_lane(self, job: HeldJob) -> None:
        place = self._places.pop(job, None)
        if place is None:
            return
        name, rest = place
        by_rest = self._lanes[name].by_rest
        by_rest[rest].discard(job)
        if not by_rest[rest]:
            del by_rest[rest]
        if not by_rest:
            del self._lanes[name]
