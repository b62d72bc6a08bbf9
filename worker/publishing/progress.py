"""Progress of a publisher: its work, counted and reported to the worker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tokenbus.producer.telemetry.histogram import Histogram
from tokenbus.worker.messages.publishing import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.worker.messages.publishing import PublisherReport


class ProgressCounter:
    """The work of one publisher since its last report.

    It is reported through `emit` at once, or after `report_after_s` where each report costs a
    message.
    """

    def __init__(self, emit: Callable[[PublisherReport], None], report_after_s: float) -> None:
        self._emit = emit
        self._report_after_s = report_after_s
        self._progress = Progress()
        self._lags = Histogram()
        self._firsts: list[tuple[int, float]] = []
        self._ends: list[tuple[int, float]] = []
        self._report_is_due = False

    def called(self, num_tokens: int, lags_s: list[float], waits_s: float, hold_s: float) -> None:
        """Note one append call.

        `lags_s` has the seconds from the engine's delivery to now, for each entry written.
        """
        progress = self._progress
        progress.calls += 1
        progress.entries += len(lags_s)
        progress.logged_tokens += num_tokens
        progress.freed_tokens += num_tokens
        progress.waits_s += waits_s
        # Entries of one step have nearly the same lag.
        lags_s.sort()
        self._lags.add_sorted(lags_s)
        progress.hold_s = hold_s
        self._report()

    def began(self, priority: int, seconds: float) -> None:
        """Note that a job's first token was published, so long after its submit.

        The call that did it is noted next, and reported with it.
        """
        self._firsts.append((priority, seconds))

    def ended(self, priority: int, seconds: float) -> None:
        """Note that a finished job's end was published, so long after its submit."""
        self._ends.append((priority, seconds))
        self._report()

    def freed(self, num_tokens: int) -> None:
        """Note tokens that will not be logged."""
        self._progress.freed_tokens += num_tokens
        self._report()

    def _report(self) -> None:
        if self._report_after_s <= 0:
            self._report_now()
        elif not self._report_is_due:
            self._report_is_due = True
            asyncio.get_running_loop().call_later(self._report_after_s, self._report_now)

    def _report_now(self) -> None:
        self._report_is_due = False
        done = self._progress
        if done.freed_tokens or done.calls or self._ends:
            done.lags, done.lag_sum_s = self._lags.counts, self._lags.sum_s
            done.firsts, done.ends = self._firsts, self._ends
            self._progress, self._lags = Progress(hold_s=done.hold_s), Histogram()
            self._firsts, self._ends = [], []
            self._emit(done)
