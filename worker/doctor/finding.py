"""Findings: what was looked at, what was found there, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class State(StrEnum):
    """How grave a finding is; `skipped` could not be looked at for a reason that is none."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: its name, how it stands, what was found, and what to do unless all is well."""

    check: str
    state: State
    found: str
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    """Return a finding of what is well."""
    return Finding(check, State.OK, found)


def warning(check: str, found: str, advice: str) -> Finding:
    """Return a finding of what works and will be regretted."""
    return Finding(check, State.WARNING, found, advice)


def failed(check: str, found: str, advice: str) -> Finding:
    """Return a finding of what does not work."""
    return Finding(check, State.FAILED, found, advice)


def skipped(check: str, found: str) -> Finding:
    """Return a finding of what was not looked at."""
    return Finding(check, State.SKIPPED, found)


def guarded(check: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield what a check finds; what it raises is a finding too, and the next one goes on."""
    try:
        yield from look()
    except Exception as error:
        # The boundary of a check: doctors do not die of their patients' illness.
        yield failed(check, f"{type(error).__name__}: {error}", "see the error above")
