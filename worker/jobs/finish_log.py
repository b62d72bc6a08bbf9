"""The log line `job.finished`: written once per job, when it has ended on this worker."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tokenbus.producer.contract.events import TOOL_CALLS
from tokenbus.worker.logs import is_written

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tokenbus.producer.contract.events import Finish
    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.logs import Logger
    from tokenbus.worker.metrics import Metrics

_NOT_FINISHED = ("cancelled", "expired", "failed")


def log_finished(log: Logger, job: HeldJob, metrics: Metrics) -> str:
    """Note an ended job, log it, and return its outcome: finished, failed, cancelled or expired.

    The reason is `tool_calls` where a choice stopped with them.
    `queue_ms` is from the submit to this worker's pull by the server's clock, the other times are
    from the pull on by this worker's.
    """
    finish, pulled = job.finish, job.pulled
    reason = finish.reason if finish is not None else "unknown"
    outcome = reason if reason in _NOT_FINISHED else "finished"
    metrics.left(pulled.priority, pulled.tenant, outcome, finish, job.timings.tokens_at)
    # What the line is made of costs more than the rest: a look at each token.
    if is_written(log, logging.INFO):
        _write(log, job, reason)
    return outcome


def _write(log: Logger, job: HeldJob, reason: str) -> None:
    finish, times = job.finish, job.timings
    gaps_s = times.tokens_at.sorted_gaps_s()
    error = finish.error if finish is not None else None
    log.info(
        "job.finished",
        job_id=job.job_id,
        epoch=job.epoch,
        tenant=job.pulled.tenant,
        priority=job.pulled.priority,
        prompt_tokens=job.prompt_tokens,
        cached_tokens=job.cached_tokens,
        output_tokens=finish.usage.completion_tokens if finish is not None else job.last,
        reasoning_tokens=finish.usage.reasoning_tokens if finish is not None else 0,
        queue_ms=job.pulled.age_ms,
        wait_ms=_since(times.pulled_at, times.admitted_at),
        ttft_ms=_since(times.pulled_at, times.first_token_at),
        itl_p50_ms=_quantile_ms(gaps_s, 0.5),
        itl_p99_ms=_quantile_ms(gaps_s, 0.99),
        preemptions=job.num_preemptions,
        drafted_tokens=job.drafts.drafted,
        accepted_tokens=job.drafts.accepted,
        finish_reason=TOOL_CALLS if reason == "stop" and _has_calls(finish) else reason,
        error=error.code if error is not None else None,
        error_field=error.field if error is not None else None,
    )


def _has_calls(finish: Finish | None) -> bool:
    return finish is not None and TOOL_CALLS in finish.finish_reasons


def _since(start: float, end: float | None) -> float | None:
    return None if end is None else round((end - start) * 1e3, 2)


def _quantile_ms(ordered_s: NDArray[np.float32], share: float) -> float | None:
    if not ordered_s.size:
        return None
    return round(1e3 * float(ordered_s[min(ordered_s.size - 1, int(share * ordered_s.size))]), 2)
