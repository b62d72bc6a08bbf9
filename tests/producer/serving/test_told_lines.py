"""Lines of a child's log: what a person is told of them, and what they say of the child."""

from __future__ import annotations

import json

import pytest

from tokenbus.producer.serving import told_lines


def _line(level: str, event: str, **fields: object) -> str:
    return json.dumps(fields | {"event": event, "level": level, "timestamp": "now"})


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (_line("info", "engine.starting", phase="loading torch"), "loading torch"),
        (_line("info", "engine.starting", phase="a", percent=45, for_s=3), "a, 45 %, 3 s"),
        (_line("info", "worker.started", pool="default"), "ready"),
        ("INFO:     Uvicorn running on http://127.0.0.1:8000 (Press CTRL+C to quit)", "ready"),
        ("INFO:     Application startup complete.", None),
        (_line("info", "job.finished", job_id="a"), None),
        (
            _line("warning", "server.awaited", reason="no\x1bserver"),
            r"server.awaited reason=no\u001bserver",
        ),
        ("tokenbus: model: no such \x1b[1mfolder", r"tokenbus: model: no such \u001b[1mfolder"),
        ("", None),
        ('{"no": "log"}', '{"no": "log"}'),
    ],
)
def test_person_is_told_phases_and_what_is_wrong(line: str, told: str | None) -> None:
    """Phases, starts, warnings and words outside a log are told, safe to print; no other line."""
    assert told_lines.told(line) == told


def test_start_and_loudness_are_seen() -> None:
    """A child has started when its log says so; what is loud may be the reason of its end."""
    assert told_lines.is_start(_line("info", "worker.started"))
    assert not told_lines.is_start(_line("info", "worker.starting"))
    assert told_lines.is_loud(_line("error", "engine.died"))
    assert told_lines.is_loud("Traceback (most recent call last):")
    assert not told_lines.is_loud(_line("info", "engine.died"))
