"""Cron lines, `15 3 * * MON-FRI`, read by cronsim: five fields, or six with seconds in front.

On the days on which clocks change it does as Debian's cron does: what falls into the hour that is
left out runs right after it, what falls into the hour that comes twice runs once, and lines with
`*` or a step for hour or minute go by the time that passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from arq.cron import CronJob

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self


def check_line(line: str) -> str:
    """Check a cron line. Raises: ValueError with the field that is wrong."""
    try:
        next_tick(line, datetime.now(UTC))
    except StopIteration:
        raise ValueError(f"cron line {line!r} names a time that never comes") from None
    return line


def next_tick(line: str, after: datetime) -> datetime:
    """Return the first time of a line after another, in that one's time zone.

    Raises: ValueError for what is no cron line; StopIteration where none comes.
    """
    try:
        from cronsim import CronSim, CronSimError
    except ModuleNotFoundError:
        raise ValueError("cron lines need cronsim: pip install 'tokenbus[control]'") from None
    problem = ""
    try:
        ticks: Iterator[datetime] = CronSim(line, after)
    except CronSimError as error:
        problem = str(error)
    if problem:
        raise ValueError(f"cron line {line!r}: {problem}")
    return next(ticks)


@dataclass
class LineCron(CronJob):
    """A cron of arq's whose times come from a line."""

    line: str = ""

    @classmethod
    def of(cls, job: CronJob, line: str) -> Self:
        """Take name, coroutine and limits of a cron of arq's."""
        return cls(**vars(job), line=line)

    def calculate_next(self, prev_run: datetime) -> None:
        """Set the next time."""
        self.next_run = next_tick(self.line, prev_run)
