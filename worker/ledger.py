"""Pages: how many the jobs of this worker will still ask for, hence how many it may pull for.

    budget = free + evictable - reserve - what a pull under way was offered
             - what is promised to jobs that are here

What a job is promised, in pages of `page_size` tokens, L being prompt + expected output:

    not admitted yet           L of every choice, its prompt counted once
    admitted, no token yet     the same less the prompt pages that the prefix cache gave
    streaming                  L less what it holds now
    ended, not completed yet   what it held: those pages count as free once the queue has answered
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from tokenbus.engine.output_estimator import OutputEstimator
from tokenbus.producer.lease_scripts import MAX_ESTIMATES
from tokenbus.worker.held_job import Phase

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.engine.types import EngineLimits, EngineStats
    from tokenbus.worker.held_job import HeldJob
    from tokenbus.worker.roster import Roster


class Ledger:
    """Page and row accounts of one engine."""

    def __init__(
        self, roster: Roster, limits: EngineLimits, total_pages: int, reserve_fraction: float
    ) -> None:
        self._roster = roster
        self.page_size = limits.page_size
        self.total_pages = total_pages
        self.max_rows = limits.max_num_seqs
        self.reserve_pages = int(total_pages * reserve_fraction)
        self.available_pages = total_pages
        self.offered_pages = 0
        self.estimator = OutputEstimator()
        self._lanes: OrderedDict[str, None] = OrderedDict()

    def see_stats(self, stats: EngineStats) -> None:
        """Take the engine's own count after a step."""
        self.available_pages = stats.free_pages + stats.evictable_pages

    def pages_for(self, num_tokens: int) -> int:
        """Return the pages that hold `num_tokens`."""
        return -(-num_tokens // self.page_size)

    def budget(self) -> int:
        """Return the pages that new jobs may be pulled for; negative while over-admitted."""
        promised = sum(self.promised(job) for job in self._roster if not self._is_waiting(job))
        return self.available_pages - self.reserve_pages - self.offered_pages - promised

    def free_rows(self) -> int:
        """Return the sequences that the engine could still run."""
        rows = sum(job.num_rows for job in self._roster if not self._is_waiting(job))
        return self.max_rows - rows

    def cost(self, job: HeldJob) -> int:
        """Return the pages a job needs from its start, as the engine's admission counts them."""
        prepared = job.prepared
        if prepared is None:
            return job.pulled.pages
        params = prepared.params
        expected = self.expected_output(job)
        prompt = self.pages_for(prepared.num_prompt_tokens)
        if params.n == 1:
            return self.pages_for(prepared.num_prompt_tokens + expected)
        return prompt + params.n * self.pages_for(expected)

    def expected_output(self, job: HeldJob) -> int:
        """Return the output tokens to count per choice: learned, and never less than is there."""
        if job.prepared is None:
            return 0
        params = job.prepared.params
        longest = job.longest_choice
        expected = self.estimator.expected(job.lane, params.max_tokens)
        return min(params.max_tokens, max(expected, longest + 1))

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
        if self.free_rows() >= job.num_rows and self.budget() >= self.cost(job):
            return True
        if self.offered_pages:
            return False
        others = (other for other in self._roster if other is not job)
        return all(self._is_waiting(other) for other in others)

    def promised(self, job: HeldJob) -> int:
        """Return the pages that a job will still take, or that it gives back only later."""
        if job.phase in (Phase.ENDING, Phase.COMMITTED, Phase.RETURNING):
            return self.held_pages(job) if job.was_added else 0
        cost = self.cost(job)
        if job.timings.admitted_at is None:
            return cost
        if job.timings.first_token_at is None:
            return max(0, cost - job.cached_tokens // self.page_size)
        return max(0, cost - self.held_pages(job))

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

    def held_pages(self, job: HeldJob) -> int:
        """Return the pages that a job holds by what is known of its tokens."""
        if job.prepared is None or job.taken is None:
            return 0
        prompt, counts = job.prepared.num_prompt_tokens, job.lengths
        if len(counts) == 1:
            return self.pages_for(prompt + counts[0])
        return self.pages_for(prompt) + sum(self.pages_for(count) for count in counts)

    @staticmethod
    def _is_waiting(job: HeldJob) -> bool:
        """Tell whether a job is the head-of-line one, which has no pages yet."""
        return job.is_waiting
