"""A traced job: what its worker knew when it left, and the spans that are made of that.

    tokenbus.job        from the submit to the end, or to the hand-back
      queue             until the engine gave it its pages
      prefill           until the first token
      decode            from the first token to the last
      publish           from the first token's hand-off to the last word in the log
      tool_parse        the same, where answers are read for calls; `busy_ms` is what that took

An owner that goes on behind the tokens of another links to that one's `tokenbus.job`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tokenbus.producer.telemetry.tracing import EndedSpan, TraceContext, Tracer
from tokenbus.worker.process.frames import Framing

if TYPE_CHECKING:
    from collections.abc import Iterable


class TracedJob(msgspec.Struct, array_like=True):
    """A job that has left its worker; no prompt and no answer is in it.

    Moments are those of the monotonic clock, in seconds, `None` for what never came. `first` is the
    index after which it began on this worker, `last` that of its last token; `parse_s` is what
    reading its answers took, where they are read.
    """

    traceparent: str
    job_id: str
    epoch: int
    tenant: str
    priority: int
    outcome: str
    prompt_tokens: int
    cached_tokens: int
    first: int
    last: int
    preemptions: int
    submitted_at: float
    pulled_at: float
    admitted_at: float | None
    first_token_at: float | None
    last_token_at: float | None
    published_at: float | None
    left_at: float
    parse_s: float | None


class SpanDestination(msgspec.Struct, tag="destination", array_like=True, kw_only=True):
    """First message to a span process: where spans go, and what they are said to come from."""

    endpoint: str
    pool: str
    worker: str
    log_level: str

    def __repr__(self) -> str:
        """Name pool and worker; the endpoint may hold a secret."""
        return f"SpanDestination(pool={self.pool!r}, worker={self.worker!r})"


class Left(msgspec.Struct, tag="left", array_like=True):
    """Jobs that have left since the last such message."""

    jobs: list[TracedJob]


MESSAGES = Framing[SpanDestination | Left](SpanDestination | Left)


class JobSpans:
    """Makes spans of the traced jobs of one worker, and tells OpenTelemetry of them."""

    def __init__(self, pool: str, worker: str) -> None:
        self._tracer = Tracer()
        self._attributes = {"tokenbus.pool": pool, "tokenbus.worker": worker}

    def tell(self, jobs: Iterable[TracedJob]) -> None:
        """Tell of those of the jobs whose traces are sampled."""
        for job in jobs:
            self._tell_one(job)

    def _tell_one(self, job: TracedJob) -> None:
        parent = TraceContext.parse(job.traceparent)
        if parent is None:
            return
        attributes: dict[str, str | int | float | bool] = {
            **self._attributes,
            "tokenbus.job_id": job.job_id,
            "tokenbus.epoch": job.epoch,
            "tokenbus.tenant": job.tenant,
            "tokenbus.priority": job.priority,
            "tokenbus.outcome": job.outcome,
            "tokenbus.prompt_tokens": job.prompt_tokens,
            "tokenbus.cached_tokens": job.cached_tokens,
            "tokenbus.output_tokens": job.last,
            "tokenbus.preemptions": job.preemptions,
        }
        link = None
        if job.epoch > 1:
            link = parent.of_owner(job.job_id, job.epoch - 1)
            attributes["tokenbus.resumed_after"] = job.first
        root = EndedSpan(
            name="tokenbus.job",
            began_at=job.submitted_at if job.epoch == 1 else job.pulled_at,
            ended_at=job.left_at,
            attributes=attributes,
            context=parent.of_owner(job.job_id, job.epoch),
            link=link,
            is_error=job.outcome == "failed",
        )
        self._tracer.tell(parent, root, *_parts(job, root.began_at))


def _parts(job: TracedJob, began_at: float) -> list[EndedSpan]:
    admitted, first, left = job.admitted_at, job.first_token_at, job.left_at
    spans = [_span("queue", began_at, admitted or left, pull_s=job.pulled_at - began_at)]
    if admitted is not None:
        uncached = job.prompt_tokens - job.cached_tokens
        spans.append(_span("prefill", admitted, first or left, tokens=uncached))
    if first is None:
        return spans
    spans.append(_span("decode", first, job.last_token_at or first, tokens=job.last - job.first))
    lag = {} if job.published_at is None else {"first_ms": 1e3 * (job.published_at - first)}
    spans.append(_span("publish", first, left, **lag))
    if job.parse_s is not None:
        spans.append(_span("tool_parse", first, left, busy_ms=1e3 * job.parse_s))
    return spans


def _span(name: str, began_at: float, ended_at: float, **attributes: float) -> EndedSpan:
    told = {f"tokenbus.{key}": value for key, value in attributes.items()}
    return EndedSpan(name=name, began_at=began_at, ended_at=ended_at, attributes=told)
