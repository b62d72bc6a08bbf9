"""Prefix shares: pages that jobs of one prefix have in common and that are counted once.

Whether prompts begin alike is read off the prompts: each is compared with one yardstick of its
prefix. What two of them share with it they share with each other,

    common(a, b) >= min(common(a, yardstick), common(b, yardstick))

so the least of the jobs that are here is shared by all of them, and leaves with its job.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.worker.held.held_job import HeldJob


@dataclass(slots=True)
class _SharedPrefix:
    """`common` counts the tokens that each job here shares with the yardstick, `least` the fewest.

    `num_jobs` counts the jobs that share so many. `expected` is what prompts of this prefix shared
    before, 0 where only one was ever seen.
    """

    yardstick: Sequence[int] = ()
    common: dict[HeldJob, int] = field(default_factory=dict)
    num_jobs: Counter[int] = field(default_factory=Counter)
    least: int = 0
    expected: int = 0

    def add(self, job: HeldJob, common: int) -> None:
        """Take a job in."""
        self.common[job] = common
        self.num_jobs[common] += 1
        self.least = common if len(self.common) == 1 else min(self.least, common)

    def remove(self, job: HeldJob) -> None:
        """Let a job go, if it is here."""
        common = self.common.pop(job, None)
        if common is None:
            return
        self.num_jobs[common] -= 1
        if not self.num_jobs[common]:
            del self.num_jobs[common]
            self.least = min(self.num_jobs, default=0)


class PrefixShares:
    """The tokenised jobs of one worker by their prefix, from `join` to `leave`."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._prefixes: dict[str, _SharedPrefix] = {}

    def join(self, job: HeldJob) -> None:
        """Take a tokenised job in, unless it computes its whole prompt by itself."""
        name, prepared = job.pulled.prefix, job.prepared
        if not name or prepared is None or prepared.params.prompt_logprobs is not None:
            return
        prefix = self._prefixes.setdefault(name, _SharedPrefix())
        prompt = prepared.prompt_ids
        common = count_common(prefix.yardstick, prompt)
        if not prefix.common:
            if prefix.yardstick:
                prefix.expected = common
            prefix.yardstick, common = prompt, len(prompt)
        before = prefix.least
        prefix.remove(job)
        prefix.add(job, common)
        self._tell(prefix, job, before)
        if len(prefix.common) > 1:
            prefix.expected = prefix.least

    def leave(self, job: HeldJob) -> None:
        """Let a job go; safe to repeat."""
        prefix = self._prefixes.get(job.pulled.prefix)
        if prefix is not None and job in prefix.common:
            before = prefix.least
            prefix.remove(job)
            self._tell(prefix, job, before)

    def drop(self, name: str) -> None:
        """Keep nothing of a prefix that has no job here."""
        self._prefixes.pop(name, None)

    def pages_of(self, job: HeldJob) -> int:
        """Return the full pages of a job's prompt that every job of its prefix here shares.

        Its last prompt token is always computed. Before it is tokenised, what the pull says.
        """
        if job.prepared is None:
            return job.pulled.shared_pages
        prefix = self._prefixes.get(job.pulled.prefix)
        if prefix is None or job not in prefix.common:
            return 0
        return min(prefix.least, job.prepared.num_prompt_tokens - 1) // self._page_size

    def tokens_of(self, name: str) -> int:
        """Return how many tokens another job of a prefix may be expected to share."""
        prefix = self._prefixes.get(name)
        if prefix is None:
            return 0
        return min(prefix.expected, prefix.least) if prefix.common else prefix.expected

    def _tell(self, prefix: _SharedPrefix, job: HeldJob, before: int) -> None:
        """Let the pages of a job be counted anew, and those of all others if the least changed."""
        job.changed()
        if before // self._page_size != prefix.least // self._page_size:
            for other in prefix.common:
                other.changed()


def count_common(left: Sequence[int], right: Sequence[int]) -> int:
    """Count the leading tokens that two prompts share."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
