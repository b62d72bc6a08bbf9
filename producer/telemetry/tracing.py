"""Traces: spans of jobs that were submitted under one, told to OpenTelemetry.

A job carries its `traceparent` (W3C Trace Context); one without it, or whose trace is not sampled,
costs a look. Spans are made when they have ended, from moments that are known by then, so that
nothing is done on a token's way. They go to any provider of OpenTelemetry that the process has set
up, `opentelemetry-instrument` for instance; our own is made by `trace_setup`.

The id of a span that one owner of a job makes follows from job and epoch. So the next owner's span
links to it, also where the first one died before it could tell.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenbus.producer.release import release

if TYPE_CHECKING:
    from collections.abc import Mapping

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED = 1
_ODD_DIGITS = tuple("13579bdf")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Where a span stands: its trace, and its own id, as numbers."""

    trace_id: int
    span_id: int

    @classmethod
    def parse(cls, traceparent: str | None) -> TraceContext | None:
        """Read a `traceparent`; None where it is none, or its trace is not sampled."""
        match = _sampled(traceparent)
        if match is None:
            return None
        found = cls(int(match[1], 16), int(match[2], 16))
        return found if found.trace_id and found.span_id else None

    def of_owner(self, job_id: str, epoch: int) -> TraceContext:
        """Return the context of the span that the owner of a job at an epoch makes."""
        text = f"{job_id}\n{epoch}\n{self.trace_id:032x}".encode()
        span_id = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
        return TraceContext(self.trace_id, span_id or 1)

    @property
    def traceparent(self) -> str:
        """Return it as a header, sampled."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{_SAMPLED:02x}"


def is_worth_telling(traceparent: str | None) -> bool:
    """Tell whether a text may be a `traceparent` whose trace is sampled, by its last digit.

    `TraceContext.parse` reads the rest.
    """
    return traceparent is not None and traceparent.endswith(_ODD_DIGITS)


def _sampled(traceparent: str | None) -> re.Match[str] | None:
    match = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
    return match if match is not None and int(match[3], 16) & _SAMPLED else None


def current_traceparent() -> str | None:
    """Return the span that is open where this is called, if its trace is sampled.

    Looks no further than what the program has imported itself.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context: Any = trace.get_current_span().get_span_context()
    if not context.is_valid or not context.trace_flags & _SAMPLED:
        return None
    return TraceContext(context.trace_id, context.span_id).traceparent


class WallClock:
    """Turns moments of the monotonic clock into the time of day in ns, as spans have it."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def ns(self, at_s: float) -> int:
        """Return the time of day of a moment of the monotonic clock."""
        return self._offset_ns + int(at_s * 1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedSpan:
    """A span that has ended, its moments by the monotonic clock in seconds.

    `context` is its own, where others may know it; `link` one that it follows.
    """

    name: str
    began_at: float
    ended_at: float
    attributes: Mapping[str, str | int | float | bool]
    context: TraceContext | None = None
    link: TraceContext | None = None
    is_error: bool = False


class Tracer:
    """Tells OpenTelemetry of spans; does nothing where that is not installed or not set up."""

    def __init__(self) -> None:
        self._trace = _import("opentelemetry.trace")
        self._tracer: Any = None
        if self._trace is not None:
            self._tracer = self._trace.get_tracer("tokenbus", release())

    def tell(self, parent: TraceContext, root: EndedSpan, *children: EndedSpan) -> str | None:
        """Tell of a span below `parent` and of its children; return its `traceparent`.

        None where nobody listens.
        """
        trace = self._trace
        if trace is None:
            return None
        clock = WallClock()
        # That of `trace_setup` has them, no other.
        ended_spans: Any = getattr(trace.get_tracer_provider(), "ended_spans", None)
        if ended_spans is not None:
            told: str | None = ended_spans.tell(parent, root, children, clock)
            return told
        around = trace.set_span_in_context(trace.NonRecordingSpan(self._context(parent)))
        span = self._start(around, root, clock)
        if not span.is_recording():
            return None
        found = span.get_span_context()
        inside = trace.set_span_in_context(span)
        for child in children:
            self._end(self._start(inside, child, clock), child, clock)
        self._end(span, root, clock)
        return TraceContext(found.trace_id, found.span_id).traceparent

    def _start(self, around: Any, span: EndedSpan, clock: WallClock) -> Any:
        trace = self._trace
        assert trace is not None
        links = [] if span.link is None else [trace.Link(self._context(span.link))]
        return self._tracer.start_span(
            span.name,
            context=around,
            attributes=dict(span.attributes),
            links=links,
            start_time=clock.ns(span.began_at),
        )

    def _end(self, started: Any, span: EndedSpan, clock: WallClock) -> None:
        trace = self._trace
        assert trace is not None
        if span.is_error:
            started.set_status(trace.Status(trace.StatusCode.ERROR))
        started.end(end_time=clock.ns(max(span.began_at, span.ended_at)))

    def _context(self, context: TraceContext) -> Any:
        return sampled_context(self._trace, context, is_remote=True)


def sampled_context(trace: Any, context: TraceContext, *, is_remote: bool) -> Any:
    """Return OpenTelemetry's own form of a context; `trace` is its module."""
    flags = trace.TraceFlags(_SAMPLED)
    return trace.SpanContext(context.trace_id, context.span_id, is_remote, flags)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
