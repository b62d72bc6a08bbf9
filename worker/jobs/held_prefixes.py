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
from itertools import chain, islice
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
        # In use since longest first; least lately released first.
        self._in_use: dict[str, _HeldPrefix] = {}
        self._idle: OrderedDict[str, _HeldPrefix] = OrderedDict()
        self._lost: set[str] = set()
        # Pages released so far that belonged to one job alone.
        self._released_pages = 0
        # Shared pages of all idle prefixes.
        self._idle_pages = 0

    def pulled(self, job: HeldJob) -> None:
        """Note a job that will bring its prefix."""
        name = job.pulled.prefix
        if not self._is_on or not name:
            return
        prefix = self._in_use.get(name)
        if prefix is None:
            prefix = self._in_use[name] = self._pop_idle(name) or _HeldPrefix()
            self._lost.discard(name)
        prefix.num_jobs += 1

    def prepared(self, job: HeldJob) -> None:
        """Learn from a tokenised prompt how much it shares with others of its prefix."""
        name = job.pulled.prefix
        prefix = self._in_use.get(name)
        if prefix is None or job.prepared is None:
            return
        self._shares.join(job)
        shared = self._shares.tokens_of(name) or job.prepared.num_prompt_tokens
        page_size = self._costs.page_size
        prefix.num_shared = shared // page_size * page_size

    def gone(self, job: HeldJob) -> None:
        """Note that a job has left and released its pages."""
        name = job.pulled.prefix
        prefix = self._in_use.get(name)
        own = self._costs.held_pages(job)
        self._shares.leave(job)
        if prefix is None:
            self._released_pages += own
            return
        shared = prefix.num_shared // self._costs.page_size
        self._released_pages += max(0, own - shared)
        prefix.num_jobs -= 1
        prefix.released_at = self._released_pages
        if prefix.num_jobs == 0:
            self._idle[name] = self._in_use.pop(name)
            self._idle_pages += shared

    def held(self) -> dict[str, int]:
        """Return the prefixes that are in the cache; of too many, those in use and the latest.

        The value is how many tokens another job of one may be expected to share.
        """
        self._drop_evicted()
        names = islice(chain(reversed(self._in_use), reversed(self._idle)), MAX_ESTIMATES)
        return {name: self._shares.tokens_of(name) for name in names}

    def lost(self) -> list[str]:
        """Return those that fell out of the cache and that the queue has not been told of."""
        return list(self._lost)[:MAX_ESTIMATES]

    def told(self, lost: Sequence[str]) -> None:
        """Note that the queue knows."""
        self._lost.difference_update(lost)

    def clear(self) -> None:
        """Lose what a dead engine held."""
        while self._idle:
            self._lose_oldest()

    def _drop_evicted(self) -> None:
        """Drop idle prefixes, the oldest first, until all others fit.

        Where one fits, so do those released later: fewer pages came after them.
        """
        available = self._page_budget.available_pages
        while self._idle:
            oldest = next(iter(self._idle.values()))
            if self._idle_pages + self._released_pages - oldest.released_at <= available:
                return
            self._lose_oldest()

    def _lose_oldest(self) -> None:
        name = next(iter(self._idle))
        self._pop_idle(name)
        self._shares.drop(name)
        self._lost.add(name)

    def _pop_idle(self, name: str) -> _HeldPrefix | None:
        prefix = self._idle.pop(name, None)
        if prefix is not None:
            self._idle_pages -= prefix.num_shared // self._costs.page_size
        return prefix
