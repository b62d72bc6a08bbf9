"""Cron lines: when they run next, also on the days on which clocks change."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest

from tokenbus.worker.control.crons import Crons
from tokenbus.worker.control.timetable import Entry, Timetable
from tokenbus.worker.errors import SettingsInvalid

if TYPE_CHECKING:
    from pathlib import Path

    from arq.cron import CronJob

pytest.importorskip("cronsim", reason="cronsim is not installed")
ROME = ZoneInfo("Europe/Rome")


def _job(line: str) -> CronJob:
    entry = Entry.model_validate({"name": "n", "at": line, "request": {"prompt": "x"}})
    crons: Crons = object.__new__(Crons)
    crons._client = _Client  # type: ignore[assignment]  # it is asked for nothing but the pool
    return crons._entry(entry)


class _Client:
    class scripts:  # noqa: N801
        class keys:  # noqa: N801
            pool = "p"


def _runs(line: str, after: datetime, count: int) -> list[str]:
    """Return the next times in UTC, asked for as arq asks: each after the last."""
    job, runs = _job(line), []
    for _ in range(count):
        job.calculate_next(after)
        assert job.next_run is not None
        after = job.next_run
        runs.append(after.astimezone(UTC).strftime("%m-%d %H:%M:%S"))
    return runs


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("15 3 * * *", ["06-01 01:15:00", "06-02 01:15:00"]),
        ("*/20 8-9 * * MON-FRI", ["06-01 06:00:00", "06-01 06:20:00", "06-01 06:40:00"]),
        ("30 0 0 1 * *", ["05-31 22:00:30", "06-30 22:00:30"]),
        ("0 12 L * *", ["06-30 10:00:00"]),
    ],
)
def test_line_runs_at_its_times_in_the_zone_of_the_table(line: str, wanted: list[str]) -> None:
    """Five fields or six, names, steps and last days; times are those of the zone."""
    monday = datetime(2026, 6, 1, tzinfo=ROME)
    assert _runs(line, monday, len(wanted)) == wanted


def test_line_in_the_hour_that_is_left_out_runs_once() -> None:
    """On 29 March 2026 half past two does not come in Rome."""
    saturday = datetime(2026, 3, 28, 12, tzinfo=ROME)
    assert _runs("30 2 * * *", saturday, 2) == ["03-29 01:00:00", "03-30 00:30:00"]


def test_line_in_the_hour_that_comes_twice_runs_once() -> None:
    """On 25 October 2026 half past two comes twice in Rome; a line of every hour runs in both."""
    saturday = datetime(2026, 10, 24, 12, tzinfo=ROME)
    assert _runs("30 2 * * *", saturday, 2) == ["10-25 00:30:00", "10-26 01:30:00"]
    before = datetime(2026, 10, 25, 1, 30, tzinfo=ROME)
    assert _runs("0 * * * *", before, 3) == ["10-25 00:00:00", "10-25 01:00:00", "10-25 02:00:00"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("15 3 * *", "cron line '15 3"),
        ("61 3 * * *", "minute"),
        ("0 0 30 2 *", "day-of-month"),
        ("", "cron line ''"),
    ],
)
def test_wrong_line_stops_the_start(tmp_path: Path, line: str, why: str) -> None:
    """A line that cannot be read, or whose time never comes, is refused with the field."""
    path = tmp_path / "crons.toml"
    path.write_text(f'[[cron]]\nname = "a"\nat = "{line}"\nrequest = {{ prompt = "x" }}')
    with pytest.raises(SettingsInvalid, match=why):
        Timetable.load(path)
