"""Rules switched off, and books kept beside the scripts: what was charged, and how often.

The scripts run as they are but for one line that notes every change of a tenant's virtual time in a
key of its own, and but for the rule that a test switches off.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

from tokenbus.producer import script_runner
from tokenbus.producer.script_runner import script_source

if TYPE_CHECKING:
    from collections.abc import Iterator

_ADD_TIME = "local function add_time(priority, tenant, amount)\n"
_NOTE = "  redis.call('HINCRBYFLOAT', KEYS[1]..':audit', tenant, amount)\n"


class Violation(AssertionError):
    """A promise was broken."""


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a script that is replaced, to switch the rule off that it stands for."""

    script: str
    line: str
    instead: str


@contextmanager
def audited_scripts(*changes: Change) -> Iterator[None]:
    """Run the scripts with the audit line and with some lines replaced."""
    texts: dict[str, str] = {}

    def text_of(name: str) -> str:
        if name not in texts:
            text = script_source(name).replace(_ADD_TIME, _ADD_TIME + _NOTE)
            for change in changes:
                if change.script == name:
                    if change.line not in text:
                        raise ValueError(f"{name}.lua has no line {change.line!r}")
                    text = text.replace(change.line, change.instead)
            texts[name] = text
        return texts[name]

    shas: dict[str, str] = {}

    def sha_of(name: str) -> str:
        if name not in shas:
            text = text_of(name).encode()
            shas[name] = hashlib.sha1(text, usedforsecurity=False).hexdigest()
        return shas[name]

    with (
        mock.patch.object(script_runner, "script_source", text_of),
        mock.patch.object(script_runner, "script_sha", sha_of),
    ):
        yield


@dataclass(slots=True)
class Audit:
    """What the world saw happen on the server; a rollback takes it back with the keys."""

    tenants: dict[str, str] = field(default_factory=dict)
    completions: Counter[str] = field(default_factory=Counter)
    used: Counter[str] = field(default_factory=Counter)
    ended: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)

    def copy(self) -> Audit:
        """Return the state of now."""
        return Audit(
            self.tenants,
            Counter(self.completions),
            Counter(self.used),
            set(self.ended),
            set(self.cancelled),
        )

    def completed(self, args: tuple[Any, ...]) -> None:
        """Note a completion that took effect."""
        job_id, actual = args[4], args[6]
        self.completions[job_id] += 1
        self.used[self.tenants.get(job_id, "")] += actual
