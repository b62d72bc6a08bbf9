"""Page costs: the pages of a job's prompt and of the output that is expected of it.

Expected is what jobs of the same lane, its priority and tenant, have put out lately; until enough
have, it is what the job may put out at most.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from tokenbus.engine.scheduling.output_estimator import OutputEstimator
from tokenbus.producer.scripts.lease import MAX_ESTIMATES
from tokenbus.worker.jobs.prefix_shares import PrefixShares

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.worker.held.held_job import HeldJob


# More tokens than any job puts out.
_UNBOUNDED = 1 << 30


class PageCosts:
    """The costs of jobs in an engine of `total_pages`; `shares` says which pages they share.

    `changed_lanes` are those whose expected output may have changed since its reader last emptied
    the set.
    """

    def __init__(self, page_size: int, total_pages: int) -> None:
        self.page_size = page_size
        self.total_pages = total_pages
        self.shares = PrefixShares(page_size)
        self._estimator = OutputEstimator()
        self._lanes: OrderedDict[str, None] = OrderedDict()
        self.changed_lanes: set[str] = set()

    def pages_for(self, num_tokens: int) -> int:
        """Return the pages that hold `num_tokens`."""
        return -(-num_tokens // self.page_size)

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
        expected = self._estimator.expected(job.lane, max_tokens)
        if expected == max_tokens:
            return max_tokens
        return min(max_tokens, max(expected, job.longest_choice + 1))

    def expected_of(self, lane: str) -> int:
        """Return the learned output length of a lane; past any bound until enough have ended."""
        return self._estimator.expected(lane, _UNBOUNDED)

    def expected_outputs(self) -> dict[str, int]:
        """Return the learned output length of each lane seen lately, for the pull to count by."""
        learned = {lane: self.expected_of(lane) for lane in self._lanes}
        return {lane: tokens for lane, tokens in learned.items() if tokens < _UNBOUNDED}

    def rest_of(self, job: HeldJob) -> int:
        """Return behind how many tokens of a page the output of a tokenised job begins."""
        if job.prepared is None or job.num_rows > 1:
            # The output of several choices is counted in pages of its own.
            return 0
        return job.prepared.num_prompt_tokens % self.page_size

    def lengths_of_change(self, job: HeldJob) -> list[int]:
        """Return from which length of each choice on a streaming job may be promised other pages.

        It holds another page, or puts out more than was expected and so costs one.
        """
        if job.prepared is None:
            return [0] * len(job.lengths)
        size, prompt = self.page_size, 0
        expected_pages = self.pages_for(self.expected_output(job))
        if len(job.lengths) == 1:
            prompt, expected_pages = job.prepared.num_prompt_tokens, self.cost(job)
        longest = expected_pages * size - prompt
        held = (self.pages_for(prompt + max(0, length - 1)) for length in job.lengths)
        return [min(longest, pages * size - prompt + 2) for pages in held]

    def exceeds_pool(self, job: HeldJob) -> bool:
        """Tell whether a tokenised job is too large for this engine, as the pull counts it.

        Unpulled with its exact size it goes to a larger worker, or fails where none lives.
        """
        if job.prepared is None:
            return False
        params = job.prepared.params
        output = params.n * self.pages_for(params.max_tokens)
        return self.pages_for(job.prepared.num_prompt_tokens) + output > self.total_pages

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

    def held_pages(self, job: HeldJob, num_newest: int = 0) -> int:
        """Return the pages of a job's tokens, but for the newest ones of each choice."""
        if job.prepared is None or job.taken is None:
            return 0
        prompt, lengths = job.prepared.num_prompt_tokens, job.lengths
        if len(lengths) == 1:
            return -(-(prompt + max(0, lengths[0] - num_newest)) // self.page_size)
        counts = [max(0, length - num_newest) for length in lengths]
        return self.pages_for(prompt) + sum(self.pages_for(count) for count in counts)

    def observe(self, job: HeldJob, reasons: Sequence[str | None]) -> None:
        """Learn the output lengths of a job whose choices ended by themselves."""
        self._lanes[job.lane] = None
        self._lanes.move_to_end(job.lane)
        if len(self._lanes) > MAX_ESTIMATES:
            self._lanes.popitem(last=False)
        for length, reason in zip(job.lengths, reasons, strict=True):
            if reason in ("stop", "length"):
                forgotten = self._estimator.observe(job.lane, length)
                self.changed_lanes.add(job.lane)
                if forgotten is not None:
                    self.changed_lanes.add(forgotten)

    def correct(self, job: HeldJob) -> None:
        """Raise the estimate of a lane after the engine preempted a job of it."""
        self._estimator.correct(job.lane, job.longest_choice)
        self.changed_lanes.add(job.lane)
