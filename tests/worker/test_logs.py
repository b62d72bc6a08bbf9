"""Log lines name tenant and id of a job apart."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import structlog

from tokenbus.producer.terminal import ProgressLine, say
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


@pytest.mark.parametrize("stderr", ["full", "closed", "none", "unread"])
def test_log_that_cannot_be_written_ends_nobody(
    stderr: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, no stream at all, or a reader that is gone: what was to be done is done."""
    reader, writer = os.pipe()
    os.close(reader)
    if stderr != "unread":
        os.close(writer)
    path = "/dev/full" if stderr == "full" else os.devnull
    stream = os.fdopen(writer if stderr == "unread" else os.open(path, os.O_WRONLY), "w", 1)
    if stderr == "closed":
        stream.close()
    monkeypatch.setattr(sys, "stderr", None if stderr == "none" else stream)
    logs.configure("info", "auto")
    for _ in range(3):
        logs.get_logger().info("worker.started", text="x" * 9000)
        say("a hint")
        ProgressLine("model")("reading", 0.5)
    monkeypatch.undo()
    with suppress(OSError):
        stream.close()


def test_line_of_a_child_is_logged_in_our_form(capsys: pytest.CaptureFixture[str]) -> None:
    """A line of its log as it is, at its level; what is none of them as something it said."""
    logs.configure("info", "json")
    lines = [
        '{"event": "log.refused", "level": "error", "timestamp": "x", "job_id": "a@b", "n": 3}',
        '{"event": "log.seen", "level": "debug"}',
        '{"event": "log.seen"}',
        '{"event": "a", "level": {}}',
        "Traceback (most recent call last):",
        "[1, 2]",
        '"text"',
    ]
    for line in lines:
        logs.relay(line, "publisher.said")
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    first = told[0]
    assert (first["event"], first["level"], first["n"]) == ("log.refused", "error", 3)
    assert (first["job_id"], first["tenant"]) == ("a", "b")
    assert first["timestamp"] != "x"
    assert [(line["event"], line["text"]) for line in told[1:]] == [
        ("publisher.said", line) for line in lines[2:]
    ]
