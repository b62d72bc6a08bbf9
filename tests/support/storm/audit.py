"""Rules switched off, a clock for the scripts, and books: what was charged and ended, how often.

The scripts run as they are but for one line that notes every change of a tenant's virtual time in a
key of its own, for the rule that a test switches off, and for time. They read it from a key that
the schedule moves on, and their TTLs are a million times as long, of which the schedule takes a
million milliseconds for each one that passes. So a slow machine changes nothing: the same seed is
the same schedule.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from unittest import mock

from tokenbus.producer.contract.events import Event
from tokenbus.producer.contract.result import JobResult
from tokenbus.producer.scripts import source
from tokenbus.producer.scripts.source import script_source

if TYPE_CHECKING:
    from collections.abc import Iterator

_ADD_TIME = "local function add_time(priority, tenant, amount)\n"
_NOTE = "  redis.call('HINCRBYFLOAT', KEYS[1]..':audit', tenant, amount)\n"
TTL_SCALE = 1_000_000
# What a death weighs, and how much makes a suspect, and then a guilty one of what dies alone.
DEATH_WEIGHTS = {"engine": 2, "worker": 1}
TO_SUSPECT, TO_POISON, ALONE_TO_POISON = 4, 4, 6
_CLOCK = f"""
local server = redis
local redis = {{ call = function(name, ...)
  if name == 'TIME' then
    local pool = string.gsub(KEYS[1], ':%d+}}$', '}}')
    local ms = tonumber(server.call('GET', pool .. ':now'))
    return {{ math.floor(ms / 1000), ms % 1000 * 1000 }}
  end
  local args = {{ ... }}
  if name == 'PEXPIRE' then
    args[2] = args[2] * {TTL_SCALE}
  elseif name == 'SET' and args[3] == 'PX' then
    args[4] = args[4] * {TTL_SCALE}
  end
  return server.call(name, unpack(args))
end }}
"""


class Violation(AssertionError):
    """A promise was broken."""


@dataclass(frozen=True, slots=True)
class Grave:
    """A log at the moment at which it expired, and whether its job was done by then."""

    job_id: str
    is_done: bool
    entries: list[tuple[bytes, list[bytes]]]


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a script that is replaced, to switch the rule off that it stands for."""

    script: str
    line: str
    instead: str

    def made_in(self, text: str) -> str:
        """Return a script's text with the change made. Raises: ValueError, if it has no such line.

        A line that is there twice is none either: nobody knows which one stands for the rule.
        """
        if text.count(self.line) != 1:
            raise ValueError(f"{self.script}.lua has {text.count(self.line)} of {self.line!r}")
        return text.replace(self.line, self.instead)


def check_log(job_id: str, entries: list[tuple[bytes, list[bytes]]]) -> None:
    """A log holds every index once, in order, and one end behind them. Raises: Violation."""
    kinds = [fields[0] for _, fields in entries]
    if kinds.count(b"finish") != 1:
        raise Violation(f"{job_id} has not one terminal entry: {entries}")
    if kinds[-1] != b"finish":
        raise Violation(f"{job_id} has an entry after its terminal one: {entries}")
    ids: list[int] = []
    for entry_id, fields in entries:
        if fields[0] == b"e":
            ids += Event.of_entry(job_id, entry_id, fields[1]).ids
    if ids != list(range(1, len(ids) + 1)):
        raise Violation(f"{job_id} has the indices {ids}")


@contextmanager
def audited_scripts(*changes: Change) -> Iterator[None]:
    """Run the scripts with clock and audit line, and with some lines replaced.

    Raises: ValueError, if a script has no such line; it does so before any schedule runs, where
        nothing takes it for a broken promise.
    """
    texts: dict[str, str] = {}

    def text_of(name: str, _database: int = 0) -> str:
        if name not in texts:
            text = script_source(name)
            if "add_time" in text:
                text = Change(name, _ADD_TIME, _ADD_TIME + _NOTE).made_in(text)
            text = text.replace("\n", _CLOCK, 1)
            for change in changes:
                if change.script == name:
                    text = change.made_in(text)
            texts[name] = text
        return texts[name]

    for change in changes:
        text_of(change.script)
    shas: dict[str, str] = {}

    def sha_of(name: str, _database: int = 0) -> str:
        if name not in shas:
            text = text_of(name).encode()
            shas[name] = hashlib.sha1(text, usedforsecurity=False).hexdigest()
        return shas[name]

    with (
        mock.patch.object(source, "script_source", text_of),
        mock.patch.object(source, "script_sha", sha_of),
    ):
        yield


@dataclass(slots=True)
class Audit:
    """What the world saw happen on the server; a rollback takes it back with the keys."""

    tenants: dict[str, str] = field(default_factory=dict)
    completions: Counter[str] = field(default_factory=Counter)
    used: Counter[str] = field(default_factory=Counter)
    ended: set[str] = field(default_factory=set)
    buried: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    deaths: Counter[str] = field(default_factory=Counter)
    deaths_alone: Counter[str] = field(default_factory=Counter)

    def copy(self) -> Audit:
        """Return the state of now."""
        return Audit(
            self.tenants,
            Counter(self.completions),
            Counter(self.used),
            set(self.ended),
            set(self.buried),
            set(self.cancelled),
            Counter(self.deaths),
            Counter(self.deaths_alone),
        )

    def completed(self, job_id: str, actual: int) -> None:
        """Note a completion that took effect. Raises: Violation, if it is not the first."""
        if self.completions[job_id]:
            raise Violation(f"{job_id} was completed twice")
        self.completions[job_id] += 1
        self.used[self.tenants.get(job_id, "")] += actual

    def compare(
        self, job_id: str, entries: list[tuple[bytes, list[bytes]]], result: bytes | None
    ) -> None:
        """A result that takes a log's place brings all that the log did. Raises: Violation."""
        if result is None:
            raise Violation(f"{job_id} has neither log nor result")
        logged = [
            Event.of_entry(job_id, entry_id, fields[1])
            for entry_id, fields in entries
            if fields[0] != b"marker"
        ]
        kept = list(JobResult.parse(result).events(0))
        for events in (logged, kept):
            told = [(event.ids, event.text) for event in events]
            if told[-1] != ((), ""):
                raise Violation(f"{job_id} does not end with its end: {told}")
        ids = [[each for event in events for each in event.ids] for events in (logged, kept)]
        texts = ["".join(event.text for event in events) for events in (logged, kept)]
        if ids[0] != ids[1] or texts[0] != texts[1] or logged[-1].finish != kept[-1].finish:
            raise Violation(f"{job_id}: the log had {logged}, the result has {kept}")

    def crashed(self, job_id: str, cause: str, num_aboard: int) -> None:
        """Note that an engine with so many jobs on board, or a worker, died with a job."""
        self.deaths[job_id] += DEATH_WEIGHTS[cause]
        if cause == "worker" or num_aboard == 1:
            self.deaths_alone[job_id] += DEATH_WEIGHTS[cause]

    def is_struck(self, job_id: str) -> bool:
        """Tell whether enough died with an innocent job that nobody could know it for one.

        What makes it a suspect comes first; then as much must die while it is alone, or three
        engines where it was alone each time. There only an accident kills an innocent job's engine.
        """
        alone = self.deaths_alone[job_id]
        return alone >= ALONE_TO_POISON or (
            alone >= TO_POISON and self.deaths[job_id] >= TO_SUSPECT + TO_POISON
        )

    def bury(self, grave: Grave) -> None:
        """Look at a log for the last time. Raises: Violation."""
        if not grave.is_done:
            raise Violation(f"the log of {grave.job_id} expired and the job is not done")
        check_log(grave.job_id, grave.entries)
        self.buried.add(grave.job_id)
