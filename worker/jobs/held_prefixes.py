"""Held prefixes: those that the engine's cache still has, as far as the worker can tell.

The engine evicts what was released longest ago, so a prefix that nobody runs on is gone once the
pages released after it, and its own, are more than the engine has to give away:

    in use              a job of the prefix is here: its pages are held
    idle, held          own pages + shared pages of idle prefixes released later
                        + all other pages released later  <=  available pages
    lost                past that; the queue is told, so that any worker may take its next job
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenbus.producer.scripts.lease import MAX_ESTIMATES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.jobs.page_budget import PageBudget


@dataclass(slots=True)
class _HeldPrefix:
    """What is known of one prefix; `num_shared` counts the tokens that its prompts share."""

    num_jobs: int = 0
    num_shared: int = 0
    released_at: int = 0


class HeldPrefixes:
    """Follows the jobs of one worker from the pull to their end, unless it is off."""

    def __init__(self, page_budget: PageBudget, *, is_on: bool = True) -> None:
        self._page_budget = page_budget
        self._costs = page_budget.costs
        self._shares = page_budget.costs.shares
        self._is_on = is_on
        # Least lately released first; those in use stand anywhere.
        self._prefixes: OrderedDict[str, _HeldPrefix] = OrderedDict()
        self._lost: set[str] = set()
        # Pages released so far that belonged to one job alone.
        self._released_pages = 0

    def pulled(self, job: HeldJob) -> None:
        """Note a job that will bring its prefix."""
        if self._is_on and job.pulled.prefix:
            self._prefixes.setdefault(job.pulled.prefix, _HeldPrefix()).num_jobs += 1
            self._lost.discard(job.pulled.prefix)

    def prepared(self, job: HeldJob) -> None:
        """Learn from a tokenised prompt how much it shares with others of its prefix."""
        name = job.pulled.prefix
        prefix = self._prefixes.get(name)
        if prefix is None or job.prepared is None:
            return
        self._shares.join(job)
        shared = self._shares.tokens_of(name) or job.prepared.num_prompt_tokens
        page_size = self._costs.page_size
        prefix.num_shared = shared // page_size * page_size

    def gone(self, job: HeldJob) -> None:
        """Note that a job has left and released its pages."""
        prefix = self._prefixes.get(job.pulled.prefix)
        own = self._costs.held_pages(job)
        self._shares.leave(job)
        if prefix is not None:
            own = max(0, own - prefix.num_shared // self._costs.page_size)
            prefix.num_jobs -= 1
            if prefix.num_jobs == 0:
                self._prefixes.move_to_end(job.pulled.prefix)
        self._released_pages += own
        if prefix is not None:
            prefix.released_at = self._released_pages

    def held(self) -> dict[str, int]:
        """Return the prefixes that are in the cache; of too many, those in use and the latest.

        The value is how many tokens another job of one may be expected to share.
        """
        self._drop_evicted()
        latest = reversed(self._prefixes.items())
        names = [name for name, _ in sorted(latest, key=lambda item: item[1].num_jobs == 0)]
        return {name: self._shares.tokens_of(name) for name in names[:MAX_ESTIMATES]}

    def lost(self) -> list[str]:
        """Return those that fell out of the cache and that the queue has not been told of."""
        return list(self._lost)[:MAX_ESTIMATES]

    def told(self, lost: Sequence[str]) -> None:
        """Note that the queue knows."""
        self._lost.difference_update(lost)

    def clear(self) -> None:
        """Lose what a dead engine held."""
        for name in [name for name, prefix in self._prefixes.items() if prefix.num_jobs == 0]:
            self._lose(name)

    def _drop_evicted(self) -> None:
        """Drop idle prefixes from the first one on that no longer fits."""
        shared = 0
        is_past = False
        for name, prefix in list(reversed(self._prefixes.items())):
            if prefix.num_jobs > 0:
                continue
            shared += prefix.num_shared // self._costs.page_size
            later = self._released_pages - prefix.released_at
            is_past = is_past or shared + later > self._page_budget.available_pages
            if is_past:
                self._lose(name)

    def _lose(self, name: str) -> None:
        del self._prefixes[name]
        self._shares.drop(name)
        self._lost.add(name)
