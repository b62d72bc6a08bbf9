"""Orders about one job to the publisher that keeps its log, if one does already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.worker.messages.publishing import Decide, Drop, HandBack

if TYPE_CHECKING:
    from tokenbus.producer.contract.events import Failure
    from tokenbus.worker.held.held_job import HeldJob


def decide(job: HeldJob, reason: str, error: Failure | None = None) -> None:
    """End a job with what it has."""
    if job.publisher_link is not None:
        job.publisher_link.send(Decide(job.request_id, reason, error))


def hand_back(job: HeldJob) -> None:
    """Let what a job has be logged before it returns to the queue."""
    if job.publisher_link is not None:
        job.publisher_link.send(HandBack(job.request_id))


def drop(job: HeldJob) -> None:
    """Let go of the log of a job that has left the worker."""
    if job.publisher_link is not None:
        job.publisher_link.send(Drop(job.request_id))
        job.publisher_link.num_jobs -= 1
        job.publisher_link = None
