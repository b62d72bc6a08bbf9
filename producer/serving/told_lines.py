"""Lines of a child's log as a person is told them: phases, warnings and errors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenbus.producer.terminal import visible

if TYPE_CHECKING:
    from collections.abc import Callable

# Events that say that a part is there, and what the library under the gateway says instead.
_STARTED = frozenset({"worker.started", "gateway.started", "control.started"})
_LISTENS = "Uvicorn running on "
# What that library says besides.
_CHATTER = ("INFO:", "DEBUG:", "TRACE:")
_LOUD = frozenset({"warning", "error", "critical"})
_BESIDE = frozenset({"event", "level", "timestamp", "worker_id"})


class LineTeller:
    """Tells a person of children: what their logs have for one, all of these where `is_verbose`."""

    def __init__(self, tell: Callable[[str], None], *, is_verbose: bool = False) -> None:
        self._tell = tell
        self._is_verbose = is_verbose

    def said(self, name: str, line: str) -> None:
        """Tell a line of a child's log."""
        shown = line if self._is_verbose else told(line)
        if shown is not None:
            self._tell(f"{name}: {shown}")

    def restarts(self, name: str, reason: str, pause_s: float) -> None:
        """Tell why a child has ended, and when it starts again."""
        self._tell(f"{name} {reason}; it starts again in {pause_s:g} s")


def heard_level(level: str) -> str:
    """Return the level at which children have to log, so that their starts are heard."""
    return "debug" if level == "debug" else "info"


def is_start(line: str) -> bool:
    """Tell whether a line says that its process has started."""
    return str(_fields(line).get("event")) in _STARTED or _LISTENS in line


def is_loud(line: str) -> bool:
    """Tell whether a line is a warning or worse, or said by something that has no log."""
    fields = _fields(line)
    return str(fields["level"]) in _LOUD if fields else not line.startswith(_CHATTER)


def told(line: str) -> str | None:
    """Return what a line tells a person, safe to print; None where it is for the log alone."""
    fields = _fields(line)
    if is_start(line):
        return "ready"
    if not fields:
        return visible(line.strip()) or None if is_loud(line) else None
    event = str(fields["event"])
    if event == "engine.starting":
        return visible(_phase(fields))
    if not is_loud(line):
        return None
    said = " ".join(f"{name}={each}" for name, each in fields.items() if name not in _BESIDE)
    return visible(f"{event} {said}".rstrip())


def _phase(fields: dict[str, Any]) -> str:
    phase = str(fields.get("phase", "starting"))
    percent, for_s = fields.get("percent"), fields.get("for_s")
    amounts = [f"{percent} %"] if percent else []
    amounts += [f"{for_s} s"] if for_s else []
    return f"{phase}, {', '.join(amounts)}" if amounts else phase


def _fields(line: str) -> dict[str, Any]:
    """Return the fields of a line of a log; none of anything else."""
    if not line.startswith("{"):
        return {}
    try:
        fields = json.loads(line)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) and {"event", "level"} <= fields.keys() else {}
