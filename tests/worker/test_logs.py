"""Log lines name tenant and id of a job apart."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from typing import TYPE_CHECKING

import pytest
import structlog

from tokenbus.worker import logs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _own_configuration() -> Iterator[None]:
    """Leave the configuration of the log as it was."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def test_line_about_a_job_names_tenant_and_id(capsys: pytest.CaptureFixture[str]) -> None:
    """An address is taken apart; what is no address stays as it is."""
    logs.configure("info", "json")
    log = logs.get_logger()
    log.info("job.finished", job_id="order-7@a@b")
    log.info("job.finished", job_id="order-8")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["job_id"], line.get("tenant")) for line in lines] == [
        ("order-7", "a@b"),
        ("order-8", None),
    ]


class _Terminal(io.StringIO):
    """A terminal, as far as anybody asks."""

    def isatty(self) -> bool:
        """Say yes."""
        return True


@pytest.mark.parametrize(
    ("is_terminal", "environment", "has_colours"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
    ],
)
def test_colours_go_to_terminals_that_want_them(
    is_terminal: bool,
    environment: dict[str, str],
    has_colours: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file or a pipe gets no colours though a person's form was asked for; NO_COLOR is obeyed."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = _Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure("info", "console")
    logs.get_logger().info("worker.started")
    assert ("\x1b[" in stream.getvalue()) is has_colours


@pytest.mark.parametrize("hostile", ["\x1b[2J\x9b31m\u202e\u2066\x07", "\u202e \n\r\x9b"])
def test_field_of_a_tenant_moves_no_terminal(
    hostile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Controls and marks of direction in a field are escaped in both forms; one event, one line."""
    for form in ("console", "json"):
        logs.configure("info", form)
        logs.get_logger().info("job.dead_lettered", reason=hostile)
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert not set(line) & set("\x1b\x9b\u202e\u2066\x07")
        assert "u202e" in line


def test_library_that_warns_writes_lines_of_our_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings and records of libraries are events, a line each, however many lines they have."""
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    logs.configure("info", "json")
    # A test before this one may have left warnings where they were taken then.
    logging.captureWarnings(capture=False)
    try:
        logs.take_library_logs()
        logs.take_library_logs()
        logging.getLogger("redis").warning("lost\nits way")
        warnings.warn("too old", UserWarning, stacklevel=1)
    finally:
        logging.captureWarnings(capture=False)
        for handler in set(root.handlers) - set(before):
            root.removeHandler(handler)
    lost, old = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (lost["library"], lost["text"], lost["level"]) == ("redis", "lost its way", "warning")
    assert "too old" in old["text"]
