"""Headers of requests that a submit takes along, whatever the route."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.producer.telemetry.tracing import current_traceparent

if TYPE_CHECKING:
    from starlette.requests import Request

_MAX_TICKET_DIGITS = 16
_MAX_TRACE_LENGTH = 128


def ticket_of(request: Request) -> int:
    """Return the ticket with which a full queue refused the request before; 0 without one."""
    given = request.headers.get("x-tokenbus-ticket", "")
    is_number = given.isascii() and given.isdecimal() and len(given) <= _MAX_TICKET_DIGITS
    return int(given) if is_number else 0


def trace_of(request: Request) -> dict[str, str]:
    """Return the field of a job that carries the trace of the request, if it has one."""
    given = current_traceparent() or request.headers.get("traceparent") or ""
    is_plain = given.isprintable() and 0 < len(given) <= _MAX_TRACE_LENGTH
    return {"traceparent": given} if is_plain else {}
