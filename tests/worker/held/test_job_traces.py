"""Traces of held jobs: what is told of a job that has left is what was known of it by then."""

from __future__ import annotations

import time
from array import array
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import msgspec

from tokenbus.producer.scripts.replies import PulledJob
from tokenbus.worker.held.held_job import HeldJob, Phase
from tokenbus.worker.held.job_traces import JobTraces
from tokenbus.worker.token_moments import TokenMoments

if TYPE_CHECKING:
    from tokenbus.worker.tracing.traced_job import TracedJob

SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def _job(traceparent: str | None) -> HeldJob:
    job = HeldJob(PulledJob("j", 7, 0, 2, "shop", 1, False, 0, None, b"{}"), 1)
    prepared: Any = Mock(chat=None)
    prepared.request.traceparent = traceparent
    job.prepared = prepared
    return job


def test_traced_job_has_each_value_in_its_place() -> None:
    """Of jobs that leave together those are told of whose traces are sampled."""
    told: list[TracedJob] = []
    job = _job(SAMPLED)
    job.prompt_tokens, job.cached_tokens, job.first, job.num_preemptions = 11, 12, 13, 14
    job.lengths = [15, 16]
    timings = job.timings
    timings.submitted_at, timings.pulled_at, timings.admitted_at = 0.1, 0.2, 0.3
    timings.first_token_at, timings.published_at, timings.parse_s = 0.4, 0.6, 0.7
    timings.tokens_at = TokenMoments(array("d", (0.4, 0.5)), (0, 2))
    job.move_to(Phase.GONE)
    untold = [(_job(text), "finished") for text in (None, "", SAMPLED[:-1] + "0")]
    before = time.monotonic()
    JobTraces(told.extend).left([*untold, (job, "failed")])
    [found] = map(msgspec.structs.asdict, told)
    assert before <= found.pop("left_at") <= time.monotonic()
    assert found == {
        "traceparent": SAMPLED,
        "job_id": "j",
        "epoch": 7,
        "tenant": "shop",
        "priority": 2,
        "outcome": "failed",
        "prompt_tokens": 11,
        "cached_tokens": 12,
        "first": 13,
        "last": 31,
        "preemptions": 14,
        "submitted_at": 0.1,
        "pulled_at": 0.2,
        "admitted_at": 0.3,
        "first_token_at": 0.4,
        "last_token_at": 0.5,
        "published_at": 0.6,
        "parse_s": None,
    }
