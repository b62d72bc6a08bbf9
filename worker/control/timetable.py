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
from typing import Annotated, Any, Literal, Self
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
from tokenbus.worker.control.cron_lines import check_line
from tokenbus.worker.errors import SettingsInvalid

_STRICT = ConfigDict(extra="forbid", frozen=True)
_ORDER = ("second", "minute", "hour", "weekday", "day", "month")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Month = Annotated[int, Field(ge=1, le=12)]
DayOfMonth = Annotated[int, Field(ge=1, le=31)]
Hour = Annotated[int, Field(ge=0, le=23)]
Sixtieth = Annotated[int, Field(ge=0, le=59)]


class At(BaseModel):
    """The times of a cron, as `arq.cron` takes them."""

    model_config = _STRICT

    month: Month | list[Month] | None = None
    day: DayOfMonth | list[DayOfMonth] | None = None
    weekday: Weekday | list[Weekday] | None = None
    hour: Hour | list[Hour] | None = None
    minute: Sixtieth | list[Sixtieth] | None = None
    second: Sixtieth | list[Sixtieth] | None = None

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        """Refuse a cron of every second, which nobody means."""
        if not self.model_fields_set:
            raise ValueError("give at least one of month, day, weekday, hour, minute and second")
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
                values = value if isinstance(value, list) else [value]
                chosen[name] = {_DAYS.index(v) if isinstance(v, str) else v for v in values}
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
        lines = (folder / self.requests).read_text(encoding="utf-8").splitlines()
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
            table = cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
            for entry in table.cron:
                entry.build(path.parent)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise SettingsInvalid(f"{path}: {place}: {first['msg']}") from None
        except (OSError, ValueError) as error:
            raise SettingsInvalid(f"{path}: {error}") from None
        return table


def _build(where: str, fields: dict[str, Any]) -> JobRequest:
    try:
        return JobRequest.build(**fields)
    except RequestInvalid as error:
        raise RequestInvalid(f"{where}: {error.field}", error.message) from None
