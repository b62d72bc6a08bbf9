"""The traces of held jobs: one that was submitted under a sampled trace is told of as it leaves."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tokenbus.producer.telemetry.tracing import is_worth_telling
from tokenbus.worker.tracing.traced_job import TracedJob

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.held.prepared_job import PreparedJob


class JobTraces:
    """Hands the traced jobs of one worker to `tell`, from moments that are known by then."""

    def __init__(self, tell: Callable[[list[TracedJob]], None]) -> None:
        self._tell = tell

    def left(self, jobs: Sequence[tuple[HeldJob, str]]) -> None:
        """Tell of jobs that have just left, each with its outcome."""
        left_at = time.monotonic()
        traced = []
        for job, outcome in jobs:
            prepared = job.prepared
            if prepared is not None and is_worth_telling(prepared.request.traceparent):
                traced.append(_traced(job, prepared, outcome, left_at))
        if traced:
            self._tell(traced)


def _traced(job: HeldJob, prepared: PreparedJob, outcome: str, left_at: float) -> TracedJob:
    pulled, times = job.pulled, job.timings
    # By place: by name it takes four times as long.
    return TracedJob(
        prepared.request.traceparent or "",
        job.job_id,
        job.epoch,
        pulled.tenant,
        pulled.priority,
        outcome,
        job.prompt_tokens,
        job.cached_tokens,
        job.first,
        job.last,
        job.num_preemptions,
        times.submitted_at,
        times.pulled_at,
        times.admitted_at,
        times.first_token_at,
        times.tokens_at.last,
        times.published_at,
        left_at,
        None if prepared.chat is None else times.parse_s,
    )
