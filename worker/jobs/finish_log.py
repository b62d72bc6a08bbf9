"""The log line `job.finished`: written once per job, when it has ended on this worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokenbus.producer.contract.events import TOOL_CALLS

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.logs import Logger
    from tokenbus.worker.metrics import Metrics


def log_finished(log: Logger, job: HeldJob, metrics: Metrics) -> str:
    """Count an ended job, log it, and return its outcome: finished, failed, cancelled or expired.

    The reason is `tool_calls` where a choice stopped with them.
    `queue_ms` is from the submit to this worker's pull by the server's clock, the other times are
    from the pull on by this worker's.
    """
    finish = job.finish
    reason = finish.reason if finish is not None else "unknown"
    ended = [] if finish is None else [*map(finish.finish_reason_of, range(len(finish.choices)))]
    outcome = reason if reason in ("cancelled", "expired", "failed") else "finished"
    _count(job, outcome, ended, metrics)
    times = job.timings
    gaps_s = _gaps_s(times.tokens_at)
    if times.tokens_at:
        sum_s = times.tokens_at[-1] - times.tokens_at[0]
        metrics.streamed(job.pulled.priority, gaps_s, sum_s)
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
        finish_reason=TOOL_CALLS if reason == "stop" and TOOL_CALLS in ended else reason,
        error=error.code if error is not None else None,
        error_field=error.field if error is not None else None,
    )
    return outcome


def _count(job: HeldJob, outcome: str, ended: Sequence[str], metrics: Metrics) -> None:
    """Count a job by its outcome and its tenant, with what it has used."""
    match outcome:
        case "cancelled":
            metrics.jobs_cancelled += 1
        case "expired":
            metrics.jobs_expired += 1
        case "failed":
            metrics.jobs_failed += 1
        case _:
            metrics.jobs_finished += 1
            for reason in ended:
                metrics.choices[reason] += 1
    tokens = {}
    if job.finish is not None:
        usage = job.finish.usage
        tokens = {
            "prompt": usage.prompt_tokens,
            "cached": usage.cached_tokens,
            "generated": usage.completion_tokens,
        }
    metrics.left(job.pulled.priority, job.pulled.tenant, outcome, **tokens)


def _gaps_s(tokens_at: array[float]) -> NDArray[np.float32]:
    """Return the gaps between moments, in ascending order."""
    moments = np.frombuffer(tokens_at)
    # One gap for each token: what sorts them in C takes a tenth of what Python's own does.
    gaps_s = (moments[1:] - moments[:-1]).astype(np.float32)
    gaps_s.sort()
    return gaps_s


def _since(start: float, end: float | None) -> float | None:
    return None if end is None else round((end - start) * 1e3, 2)


def _quantile_ms(ordered_s: NDArray[np.float32], share: float) -> float | None:
    if not ordered_s.size:
        return None
    return round(1e3 * float(ordered_s[min(ordered_s.size - 1, int(share * ordered_s.size))]), 2)
