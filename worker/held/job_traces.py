"""The traces of held jobs: one that was submitted under a sampled trace is told of as it leaves."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tokenbus.producer.telemetry.tracing import is_sampled
from tokenbus.worker.tracing.traced_job import TracedJob

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.worker.held.held_job import HeldJob


class JobTraces:
    """Hands the traced jobs of one worker to `tell`, from moments that are known by then."""

    def __init__(self, tell: Callable[[TracedJob], None]) -> None:
        self._tell = tell

    def left(self, job: HeldJob, outcome: str) -> None:
        """Tell of a job that has left."""
        prepared = job.prepared
        if prepared is None:
            return
        traceparent = prepared.request.traceparent
        if traceparent is None or not is_sampled(traceparent):
            return
        pulled, times = job.pulled, job.timings
        self._tell(
            TracedJob(
                traceparent=traceparent,
                job_id=job.job_id,
                epoch=job.epoch,
                tenant=pulled.tenant,
                priority=pulled.priority,
                outcome=outcome,
                prompt_tokens=job.prompt_tokens,
                cached_tokens=job.cached_tokens,
                first=job.first,
                last=job.last,
                preemptions=job.num_preemptions,
                submitted_at=times.submitted_at,
                pulled_at=times.pulled_at,
                admitted_at=times.admitted_at,
                first_token_at=times.first_token_at,
                last_token_at=times.last_token_at,
                published_at=times.published_at,
                left_at=time.monotonic(),
                parse_s=None if prepared.chat is None else times.parse_s,
            )
        )
