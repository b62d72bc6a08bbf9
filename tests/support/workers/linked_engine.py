"""An engine process behind its link, and everything that it reported."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING

from patience import PATIENCE_S

from tokenbus.worker.engine.link import EngineLink
from tokenbus.worker.messages.engine import StepRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.engine.types import FinishReason
    from tokenbus.worker.messages.engine import Report, StartEngine


class Engine:
    """A started link and everything it reported."""

    def __init__(self, start: StartEngine) -> None:
        self.reports: list[Report] = []
        self._arrived = asyncio.Event()
        self.link = EngineLink(start, self._take)

    def _take(self, report: Report) -> None:
        self.reports.append(report)
        self._arrived.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the reports fulfil a condition."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._arrived.clear()
                await self._arrived.wait()

    def tokens(self, request_id: int) -> list[int]:
        """Return the tokens delivered for a request so far."""
        tokens: list[int] = []
        for report in self.reports:
            if not isinstance(report, StepRecord):
                continue
            left = iter(report.token_ids)
            for owner, count in zip(report.request_ids, report.counts, strict=True):
                ids = list(islice(left, count))
                tokens += ids if owner == request_id else []
        return tokens

    def ended(self, request_id: int) -> FinishReason | None:
        """Return why a request ended, None while it runs."""
        for report in self.reports:
            if isinstance(report, StepRecord):
                for row, reason, _, _ in report.ends:
                    if report.request_ids[row] == request_id:
                        return reason
        return None
