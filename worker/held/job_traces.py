"""The trace of a held job: its spans, told when it leaves this worker.

    tokenbus.job        from the submit to the end, or to the hand-back
      queue             until the engine gave it its pages
      prefill           until the first token
      decode            from the first token to the last
      publish           from the first token's hand-off to the last word in the log
      tool_parse        the same, where answers are read for calls; `busy_ms` is what that took

An owner that goes on behind the tokens of another links to that one's `tokenbus.job`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tokenbus.producer.telemetry.tracing import EndedSpan, TraceContext, Tracer

if TYPE_CHECKING:
    from tokenbus.worker.held.held_job import HeldJob


class JobTraces:
    """Tells of the jobs of one worker that were submitted under a trace."""

    def __init__(self, pool: str, worker: str) -> None:
        self._tracer = Tracer()
        self._attributes = {"tokenbus.pool": pool, "tokenbus.worker": worker}

    def left(self, job: HeldJob, outcome: str) -> None:
        """Tell of a job that has left; no prompt and no answer is in it."""
        if job.prepared is None:
            return
        parent = TraceContext.parse(job.prepared.request.traceparent)
        if parent is not None:
            self._tell(job, outcome, parent)

    def _tell(self, job: HeldJob, outcome: str, parent: TraceContext) -> None:
        now, times = time.monotonic(), job.timings
        attributes: dict[str, str | int | float | bool] = {
            **self._attributes,
            "tokenbus.job_id": job.job_id,
            "tokenbus.epoch": job.epoch,
            "tokenbus.tenant": job.pulled.tenant,
            "tokenbus.priority": job.pulled.priority,
            "tokenbus.outcome": outcome,
            "tokenbus.prompt_tokens": job.prompt_tokens,
            "tokenbus.cached_tokens": job.cached_tokens,
            "tokenbus.output_tokens": job.last,
            "tokenbus.preemptions": job.num_preemptions,
        }
        link = None
        if job.epoch > 1:
            link = parent.of_owner(job.job_id, job.epoch - 1)
            attributes["tokenbus.resumed_after"] = job.first
        root = EndedSpan(
            name="tokenbus.job",
            began_at=times.submitted_at if job.epoch == 1 else times.pulled_at,
            ended_at=now,
            attributes=attributes,
            context=parent.of_owner(job.job_id, job.epoch),
            link=link,
            is_error=outcome == "failed",
        )
        self._tracer.tell(parent, root, *_parts(job, root.began_at, now))


def _parts(job: HeldJob, began_at: float, now: float) -> list[EndedSpan]:
    times = job.timings
    first, last = times.first_token_at, times.last_token_at
    admitted = times.admitted_at
    spans = [_span("queue", began_at, admitted or now, pull_s=times.pulled_at - began_at)]
    if admitted is not None:
        spans.append(
            _span("prefill", admitted, first or now, tokens=job.prompt_tokens - job.cached_tokens)
        )
    if first is None:
        return spans
    spans.append(_span("decode", first, last or first, tokens=job.last - job.first))
    published = times.published_at
    lag = {} if published is None else {"first_ms": 1e3 * (published - first)}
    spans.append(_span("publish", first, now, **lag))
    if job.prepared is not None and job.prepared.chat is not None:
        spans.append(_span("tool_parse", first, now, busy_ms=1e3 * times.parse_s))
    return spans


def _span(name: str, began_at: float, ended_at: float, **attributes: float) -> EndedSpan:
    told = {f"tokenbus.{key}": value for key, value in attributes.items()}
    return EndedSpan(name=name, began_at=began_at, ended_at=ended_at, attributes=told)
