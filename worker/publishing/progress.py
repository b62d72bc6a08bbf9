"""Progress of a publisher: its work, counted and reported to the worker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

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
        self._report_is_due = False

    def called(
        self,
        num_tokens: int,
        sinces: list[float],
        started_at: float,
        ended_at: float,
        hold_s: float,
    ) -> None:
        """Note one append call, from `started_at` to `ended_at`.

        `sinces` has the moments of the engine's delivery, for each entry written.
        """
        progress = self._progress
        progress.logged_tokens += num_tokens
        progress.freed_tokens += num_tokens
        progress.hold_s = hold_s
        progress.calls.append((sinces, started_at, ended_at))
        self._report()

    def began(self, priority: int, seconds: float) -> None:
        """Note that a job's first token was published, so long after its submit.

        The call that did it is noted next, and reported with it.
        """
        self._progress.firsts.append((priority, seconds))

    def ended(self, priority: int, seconds: float) -> None:
        """Note that a finished job's end was published, so long after its submit.

        It is told with the next report: `report` makes one of the ends of a call.
        """
        self._progress.ends.append((priority, seconds))

    def report(self) -> None:
        """Report ends that are noted."""
        if self._progress.ends:
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
