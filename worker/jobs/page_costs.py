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


class PageCosts:
    """The costs of jobs in an engine of `total_pages`; `shares` says which pages they share."""

    def __init__(self, page_size: int, total_pages: int) -> None:
        self.page_size = page_size
        self.total_pages = total_pages
        self.shares = PrefixShares(page_size)
        self._estimator = OutputEstimator()
        self._lanes: OrderedDict[str, None] = OrderedDict()

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

    def expected_outputs(self) -> dict[str, int]:
        """Return the learned output length of each lane seen lately, for the pull to count by."""
        unbounded = 1 << 30
        learned = {lane: self._estimator.expected(lane, unbounded) for lane in self._lanes}
        return {lane: tokens for lane, tokens in learned.items() if tokens < unbounded}

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
                self._estimator.observe(job.lane, length)

    def correct(self, job: HeldJob) -> None:
        """Raise the estimate of a lane after the engine preempted a job of it."""
        self._estimator.correct(job.lane, job.longest_choice)
