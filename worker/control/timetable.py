"""The cron table of the configuration: jobs that are submitted at set times, each tick once.

    timezone = "Europe/Rome"            # default UTC

    [[cron]]
    name = "nightly-texts"
    at = { hour = 3, minute = 15 }      # month, day, weekday, hour, minute, second; or
    # at = "15 3 * * *"                 # a cron line
    requests = "products.jsonl"         # a request per line, next to this file; or
    # request = { prompt = "…", tenant = "shop", max_tokens = 200 }

What `at` leaves out below its smallest field is 0, above it every one: `{ hour = 3 }` is 03:00:00
each day. A field takes a number or a list.
"""

from __future__ import annotations

import tomllib
from pathlib import Path  # noqa: TC003 -- pydantic reads the annotations
from typing import Annotated, Any, Literal, Self, TypeVar
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.errors import RequestInvalid
from tokenbus.producer.settings import setting_problem
from tokenbus.worker.control.cron_lines import check_line
from tokenbus.worker.errors import SettingsInvalid

_STRICT = ConfigDict(extra="forbid", frozen=True)
_ORDER = ("second", "minute", "hour", "weekday", "day", "month")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Month = Annotated[int, Field(ge=1, le=12, strict=True)]
DayOfMonth = Annotated[int, Field(ge=1, le=31, strict=True)]
Hour = Annotated[int, Field(ge=0, le=23, strict=True)]
Sixtieth = Annotated[int, Field(ge=0, le=59, strict=True)]
T = TypeVar("T")
# What matches no time is looked for without end.
Several = Annotated[list[T], Field(min_length=1)]
# Days of a month in a leap year, from January on.
_LENGTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


class At(BaseModel):
    """The times of a cron, as `arq.cron` takes them."""

    model_config = _STRICT

    month: Month | Several[Month] | None = None
    day: DayOfMonth | Several[DayOfMonth] | None = None
    weekday: Weekday | Several[Weekday] | None = None
    hour: Hour | Several[Hour] | None = None
    minute: Sixtieth | Several[Sixtieth] | None = None
    second: Sixtieth | Several[Sixtieth] | None = None

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        """Refuse a cron of every second, which nobody means."""
        if not self.model_fields_set:
            raise ValueError("give at least one of month, day, weekday, hour, minute and second")
        days = _listed(self.day) or [1]
        months = _listed(self.month) or [1]
        if min(days) > max(_LENGTHS[month - 1] for month in months):
            raise ValueError("names a day that none of its months has")
        return self

    def fields(self) -> dict[str, Any]:
        """Return the arguments of `arq.cron`."""
        given = {name: getattr(self, name) for name in _ORDER}
        chosen: dict[str, Any] = {}
        has_smaller = False
        for name in _ORDER:
            value = given[name]
            if value is not None:
                has_smaller = True
                chosen[name] = {_DAYS.index(v) if isinstance(v, str) else v for v in _listed(value)}
            elif not has_smaller and name in ("second", "minute", "hour"):
                chosen[name] = 0
            else:
                chosen[name] = None
        return chosen


Times = Annotated[
    Annotated[At, Tag("fields")] | Annotated[str, AfterValidator(check_line), Tag("line")],
    Discriminator(lambda given: "line" if isinstance(given, str) else "fields"),
]


class Entry(BaseModel):
    """One cron of the table."""

    model_config = _STRICT

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,48}$")]
    at: Times
    request: dict[str, Any] | None = None
    requests: Path | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.request is None) == (self.requests is None):
            raise ValueError("give exactly one of request and requests")
        return self

    def build(self, folder: Path) -> list[JobRequest]:
        """Return the requests of a tick; a file is read anew each time.

        Raises: RequestInvalid naming line and field; OSError for a file that cannot be read.
        """
        if self.requests is None:
            return [_build(f"cron {self.name}", self.request or {})]
        # By line feeds alone: JSON may hold the other characters that end lines elsewhere.
        lines = _read(folder / self.requests).split("\n")
        found = []
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{self.requests} line {number}"
                try:
                    found.append(JobRequest.parse(line))
                except RequestInvalid as error:
                    raise RequestInvalid(f"{where}: {error.field}", error.message) from None
        return found


class Timetable(BaseModel):
    """All crons of the configuration."""

    model_config = _STRICT

    timezone: str = "UTC"
    cron: list[Entry] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        names = [entry.name for entry in self.cron]
        if len(set(names)) != len(names):
            raise ValueError("two crons have the same name")
        try:
            ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"timezone {self.timezone} is not known here") from None
        return self

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """Read and check a table and all its requests.

        Raises: SettingsInvalid, one sentence that names the file and the place in it.
        """
        if path is None:
            return cls()
        try:
            table = cls.model_validate(tomllib.loads(_read(path)))
            for entry in table.cron:
                entry.build(path.parent)
        except ValidationError as error:
            raise SettingsInvalid(f"{path}: {setting_problem(error)}") from None
        except (OSError, ValueError) as error:
            raise SettingsInvalid(f"{path}: {error}") from None
        return table


def _read(path: Path) -> str:
    """Read a file, without the mark that some editors begin UTF-8 with."""
    return path.read_text(encoding="utf-8-sig")


def _listed(value: Any) -> list[Any]:
    """Return the values of a field; none where it is left out."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _build(where: str, fields: dict[str, Any]) -> JobRequest:
    try:
        return JobRequest.build(**fields)
    except RequestInvalid as error:
        raise RequestInvalid(f"{where}: {error.field}", error.message) from None
