"""Progress of a publisher: its work, counted and reported to the worker."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from tokenbus.producer.telemetry.histogram import bucket_of
from tokenbus.worker.messages.publishing import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
        self._report_is_due = False

    def called(
        self,
        num_tokens: int,
        sinces: Sequence[float],
        started_at: float,
        ended_at: float,
        hold_s: float,
    ) -> None:
        """Note one append call, from `started_at` to `ended_at`.

        `sinces` has the moments of the engine's delivery, for each entry written.
        """
        progress = self._progress
        progress.calls += 1
        progress.entries += len(sinces)
        progress.logged_tokens += num_tokens
        progress.freed_tokens += num_tokens
        progress.hold_s = hold_s
        if sinces:
            _count_lags(progress, sinces, started_at, ended_at)
        self._report()

    def began(self, priority: int, seconds: float) -> None:
        """Note that a job's first token was published, so long after its submit.

        The call that did it is noted next, and reported with it.
        """
        self._progress.firsts.append((priority, seconds))

    def ended(self, priority: int, seconds: float) -> None:
        """Note that a finished job's end was published, so long after its submit."""
        self._progress.ends.append((priority, seconds))
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
        if done.freed_tokens or done.calls or done.ends:
            self._progress = Progress(hold_s=done.hold_s)
            self._emit(done)


def _count_lags(
    progress: Progress, sinces: Sequence[float], started_at: float, ended_at: float
) -> None:
    """Count how long entries waited for their call and for its end: together, those of one step."""
    num, since = len(sinces), sinces[0]
    numbers = {since: num} if sinces.count(since) == num else Counter(sinces)
    lags = progress.lags
    for since, num in numbers.items():
        lag_s = ended_at - since
        bucket = bucket_of(lag_s)
        lags[bucket] = lags.get(bucket, 0) + num
        progress.lag_sum_s += num * lag_s
        progress.waits_s += num * (started_at - since)
