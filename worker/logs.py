"""Structured logs: `noun.past_verb` events, JSON lines unless a person is watching."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog

from tokenbus.producer.contract.address import JobAddress
from tokenbus.producer.terminal import has_colours, is_terminal, visible

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}

Logger = structlog.stdlib.BoundLogger


class _Stderr(io.TextIOBase):
    """Whatever stderr is at the time of writing: programs around a worker may redirect it.

    A line that cannot be written, because the disk of the log is full or its reader gone, is lost:
    nobody's jobs hang on it.
    """

    def write(self, text: str) -> int:
        """Write to the stderr of this moment."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stderr of this moment."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()


def configure(level: str, log_format: str) -> None:
    """Send logs to stderr; `auto` means console colours on a terminal and JSON elsewhere."""
    _configure(level, log_format)


def configure_once(level: str, log_format: str) -> None:
    """Do the same unless the program around us has set up its logs."""
    if not structlog.is_configured():
        _configure(level, log_format)


def relay(line: str, otherwise: str) -> None:
    """Log a line that a child process printed: one of its own log as it is, in our log's form.

    Any other is a warning of the event `otherwise`.
    """
    try:
        fields = json.loads(line)
        event, level = (
            str(fields.pop("event")),
            logging.getLevelNamesMapping()[str(fields.pop("level")).upper()],
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        get_logger().warning(otherwise, text=line)
        return
    fields.pop("timestamp", None)
    get_logger().log(level, event, **fields)


class _LibraryLogs(logging.Handler):
    """Turns records of the standard library's logging into events of our log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record at its own level."""
        text = " ".join(record.getMessage().split())
        get_logger().log(record.levelno, "library.said", library=record.name, text=text)


def take_library_logs() -> None:
    """Write what libraries log or warn of as lines of our log, for the rest of the process."""
    root = logging.getLogger()
    if not any(isinstance(handler, _LibraryLogs) for handler in root.handlers):
        root.addHandler(_LibraryLogs(logging.WARNING))
    logging.captureWarnings(capture=True)


def _configure(level: str, log_format: str) -> None:
    console = log_format == "console" or (log_format == "auto" and is_terminal(sys.stderr))
    # JSON escapes what is not ASCII by itself.
    renderers: list[Any] = [structlog.processors.JSONRenderer()]
    if console:
        renderers = [_escape, structlog.dev.ConsoleRenderer(colors=has_colours(sys.stderr))]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _name_job,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS.get(level, logging.ERROR)),
        logger_factory=structlog.PrintLoggerFactory(file=cast("TextIO", _Stderr())),
        cache_logger_on_first_use=False,
    )


def _escape(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> Any:
    """Escape what a terminal would obey, for fields hold what tenants wrote; traces keep lines."""
    for name, value in fields.items():
        if isinstance(value, str):
            fields[name] = visible(value, lines=name == "exception")
    return fields


def _name_job(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> Any:
    """Name tenant and id of a job apart, where a line has its address."""
    job = fields.get("job_id")
    if isinstance(job, str) and "@" in job:
        address = JobAddress.parse(job)
        fields["job_id"], fields["tenant"] = address.job_id, address.tenant
    return fields


def get_logger(**bound: Any) -> Logger:
    """Return a logger with fields bound to every event."""
    logger: Logger = structlog.get_logger(**bound)
    return logger


def is_written(log: Logger, level: int) -> bool:
    """Tell whether lines of a level are written; a logger that cannot tell may write all."""
    tells = getattr(type(log), "is_enabled_for", None)
    return tells is None or bool(tells(log, level))


def bind(**fields: Any) -> None:
    """Add fields to every event of this task and of those it starts."""
    structlog.contextvars.bind_contextvars(**fields)
